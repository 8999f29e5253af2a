//! A real job on lacuna as global allocator: reads JSON or text files (or makes a sizeable document),
//! parses them with serde_json, sorts and indexes what is in them from several threads, and tells
//! what that took. With `--budget` it meets its limit half-way, says so, and goes on with less.
//!
//! ```text
//! cargo run --release --example global_allocator                    # a document of its own
//! cargo run --release --example global_allocator -- --budget 64M    # in no more memory than that
//! cargo run --release --example global_allocator -- data/*.json *.txt
//! ```
//!
//! | file | |
//! |---|---|
//! | `global_allocator/document.rs` | documents: read, or made |
//! | `global_allocator/index.rs` | words, counted in a map that asks before it grows |

#![forbid(unsafe_code)]

#[path = "global_allocator/document.rs"]
mod document;
#[path = "global_allocator/index.rs"]
mod index;

use document::Document;
use index::Index;
use lacuna::Lacuna;
use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;

/// The whole program allocates from this.
#[global_allocator]
static GLOBAL: Lacuna = Lacuna::new();

/// Errors are for people: each says what it is about.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The exit status of a command line that makes no sense.
const USAGE: u8 = 2;

const HELP: &str = "\
usage: global_allocator [--budget BYTES] [FILE]...

  FILE            JSON if it is called .json, text otherwise; a made document without any
  --budget BYTES  run again in no more memory than this (a number, or 64M and the like)";

fn main() -> ExitCode {
    let (budget, files) = match arguments() {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("global_allocator: {message}\n{HELP}");
            return ExitCode::from(USAGE);
        }
    };
    if let Some(budget) = budget
        && std::env::var_os("LACUNA_BUDGET").is_none()
    {
        return again_with(&budget);
    }
    match run(&files) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough.
        Err(error) if is_broken_pipe(&*error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("global_allocator: {error}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The budget, if there is one, and the files.
fn arguments() -> std::result::Result<(Option<String>, Vec<String>), String> {
    let (mut budget, mut files) = (None, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--budget" => {
                budget = Some(arguments.next().ok_or("--budget needs a number of bytes")?);
            }
            option if option.starts_with('-') => return Err(format!("no such option: {option}")),
            _ => files.push(argument),
        }
    }
    Ok((budget, files))
}

/// A budget is set before the first allocation, and so before `main`: by the environment, of a
/// program that is run again. (A program whose budget is fixed writes it into the static.)
fn again_with(budget: &str) -> ExitCode {
    use std::os::unix::process::CommandExt;
    let arguments = std::env::args_os().skip(1);
    let error = std::env::current_exe().map_or_else(
        |error| error,
        |program| {
            std::process::Command::new(program).args(arguments).env("LACUNA_BUDGET", budget).exec()
        },
    );
    eprintln!("global_allocator: cannot be run again: {error}");
    ExitCode::FAILURE
}

fn run(files: &[String]) -> Result<()> {
    let mut index = Index::default();
    let mut documents = 0usize;
    let mut refused = 0usize;
    for document in document::all(files) {
        let indexed = match document? {
            Some(document) => index_in_threads(&document, &mut index),
            None => Err(index::Full),
        };
        match indexed {
            Ok(()) => documents += 1,
            // What it took is free again: the next one may fit.
            Err(index::Full) => refused += 1,
        }
    }
    let out = &mut std::io::stdout().lock();
    writeln!(out, "documents  {documents} indexed, {refused} did not fit")?;
    writeln!(out, "words      {} distinct, {} in all", index.distinct(), index.total())?;
    for (word, count) in index.most_frequent(10) {
        writeln!(out, "{count:>10}  {word}")?;
    }
    writeln!(out, "memory     {}", GLOBAL.stats())?;
    GLOBAL.purge();
    writeln!(out, "purged     {}", GLOBAL.stats())?;
    Ok(())
}

/// Counts a document's words by several threads, each a part, and adds them to the index, all or none
/// of them.
fn index_in_threads(
    document: &Document,
    index: &mut Index,
) -> std::result::Result<(), index::Full> {
    static THREADS: OnceLock<usize> = OnceLock::new();
    let threads =
        *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(2, usize::from));
    let part = document.strings.len().div_ceil(threads).max(1);
    let parts: Vec<std::result::Result<Index, index::Full>> = std::thread::scope(|scope| {
        let count = |strings| scope.spawn(move || Index::of(strings));
        let threads: Vec<_> = document.strings.chunks(part).map(count).collect();
        threads.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    });
    let parts: Vec<Index> = parts.into_iter().collect::<std::result::Result<_, _>>()?;
    index.add(&parts)
}
