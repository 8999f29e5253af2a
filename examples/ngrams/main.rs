//! Counts every 5-byte sequence of its input by direct addressing: the five bytes are the index of
//! a counter, in a table of 2^40 counters that spans 4 TiB of address space. Only the pages whose
//! counters are used take memory.
//!
//! ```text
//! cargo run --release --example ngrams                        # counts its own executable
//! cargo run --release --example ngrams -- --hashmap src/*.rs  # and checks every count
//! ```
//!
//! From the input to the answer:
//!
//! | file | |
//! |---|---|
//! | `options.rs` | what the command line asks for |
//! | `input.rs` | bytes, block by block |
//! | `sequence.rs` | five bytes as a number, and back |
//! | `table.rs` | counting |
//! | `counters.rs` | where the counters lie: a sparse array, with or without a budget |
//! | `plain.rs` | the same on plain mmap, to compare |
//! | `rival.rs` | the same with a hash map, to compare |
//! | `report.rs` | what is printed |

#![deny(unsafe_code)]

mod counters;
mod input;
mod options;
mod plain;
mod report;
mod rival;
mod sequence;
mod table;

use counters::Counters;
use indicatif::{ProgressBar, ProgressStyle};
use input::Input;
use options::{Command, Options};
use rival::Rival;
use std::error::Error;
use std::io::ErrorKind;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use table::Table;

/// Errors are for people: each says what it is about.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The exit status of a command line that makes no sense.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match Options::parse(std::env::args_os().skip(1)) {
        Ok(Command::Count(options)) => run(&options),
        Ok(Command::Help) => report::help(),
        Err(message) => {
            eprintln!("ngrams: {message}; see --help");
            return ExitCode::from(USAGE);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ngrams: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let inputs = input::open(&options.inputs)?;
    let mut count = Count {
        table: Timed::new(Table::new(counters(options)?)),
        rival: options.hashmap.then(|| Timed::new(Rival::default())),
        progress: progress_bar(&inputs),
    };
    for input in inputs {
        count.input(input)?;
    }
    count.progress.finish_and_clear();

    report::print(&count.table)?;
    match count.rival {
        Some(rival) => report::print_comparison(&count.table, rival),
        None => Ok(()),
    }
}

fn counters(options: &Options) -> Result<Counters> {
    Ok(match options.mmap {
        true => Counters::plain()?,
        false => Counters::sparse(options.budget)?,
    })
}

/// A count that is under way.
struct Count {
    table: Timed<Table>,
    rival: Option<Timed<Rival>>,
    progress: ProgressBar,
}

impl Count {
    /// Counts one input. Sequences do not reach from one input into the next.
    fn input(&mut self, mut input: Input) -> Result<()> {
        self.progress.set_message(input.name().to_owned());
        while let Some(block) = input.next_block()? {
            self.table.run(|table| table.count(block.bytes))?;
            if let Some(rival) = &mut self.rival {
                rival.run(|rival| rival.count(block.bytes));
            }
            self.progress.inc(block.fresh as u64);
        }
        Ok(())
    }
}

/// Something, and the time spent in it.
struct Timed<T> {
    value: T,
    time: Duration,
}

impl<T> Timed<T> {
    fn new(value: T) -> Self {
        Self { value, time: Duration::ZERO }
    }

    fn run<R>(&mut self, work: impl FnOnce(&mut T) -> R) -> R {
        let start = Instant::now();
        let result = work(&mut self.value);
        self.time += start.elapsed();
        result
    }
}

/// Shows on a terminal how far the count is; elsewhere it shows nothing.
fn progress_bar(inputs: &[Input]) -> ProgressBar {
    // The length is known if that of every input is.
    let (bar, template) = match inputs.iter().map(Input::len).sum() {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left  {wide_msg}",
        ),
        None => (
            ProgressBar::new_spinner(),
            "{spinner} {bytes}, {bytes_per_sec}, {elapsed}  {wide_msg}",
        ),
    };
    let style = ProgressStyle::with_template(template).expect("the templates are correct");
    bar.with_style(style)
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
