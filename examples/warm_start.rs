//! A program with a large image that starts again: a hash table in a file, of which each start looks up
//! the same keys. The first start comes upon its pages one by one, and records in which order; the next
//! ones replay that before they begin, from a page cache that has the file and from one that has not.
//!
//! ```text
//! cargo run --release --example warm_start -- [--quick] [--dir DIRECTORY]
//! ```
//!
//! The directory, where the image is written (1 GiB, or 64 MiB if it is to be quick) and removed again,
//! should be on a disk: a file system in memory cannot be cold.

use lacuna::{Arena, Template, Trace};
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Two words: the key, 0 if there is none, and its value.
const ENTRY: usize = 16;

/// What the command line says.
struct Options {
    bytes: usize,
    lookups: usize,
    directory: PathBuf,
}

/// What a start took.
struct Start {
    time: Duration,
    faults: u64,
    replayed: usize,
    answers: u64,
}

/// A removed file is no use to anybody.
struct Image {
    path: PathBuf,
    file: File,
    entries: usize,
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = options()?;
    let image = Image::write(&options)?;
    println!(
        "{} lookups in a hash table of {} MiB, from the program's start to the last answer",
        options.lookups,
        options.bytes >> 20
    );
    let lookups = options.lookups;
    image.warm()?;
    let (recorded, trace) = image.record(lookups)?;
    let mut saved = Vec::new();
    trace.save(&mut saved)?;
    println!(
        "the trace: {} pages, {} KiB saved (recording took {:.1} ms)",
        trace.len(),
        saved.len() >> 10,
        millis(recorded.time),
    );
    println!("{:<34}{:>12}{:>10}{:>16}", "", "time (ms)", "faults", "replayed (MiB)");
    for (cache, is_cold) in [("page cache has the file", false), ("page cache is empty", true)] {
        for (how, trace) in [("lazy", None), ("replay", Some(saved.as_slice()))] {
            match is_cold {
                true => image.cool()?,
                false => image.warm()?,
            }
            let start = image.start(lookups, trace)?;
            if start.answers != recorded.answers {
                return Err("the answers differ".into());
            }
            let (time, replayed) = (millis(start.time), start.replayed >> 20);
            let label = format!("{cache}, {how}");
            println!("{label:<34}{time:>12.1}{:>10}{replayed:>16}", start.faults);
        }
    }
    println!("all starts gave the same answers");
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn options() -> Result<Options, Box<dyn Error>> {
    let directory = std::env::temp_dir();
    let mut options = Options { bytes: 1 << 30, lookups: 40_000, directory };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--quick" => (options.bytes, options.lookups) = (64 << 20, 4_000),
            "--dir" => {
                options.directory = arguments.next().ok_or("--dir needs a directory")?.into();
            }
            _ => return Err(format!("no such option: {argument}").into()),
        }
    }
    Ok(options)
}

/// A number without a pattern for each number (splitmix64's last step).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Image {
    /// Writes a table, two thirds full, of keys from 1 on.
    fn write(options: &Options) -> Result<Self, Box<dyn Error>> {
        let entries = options.bytes / ENTRY;
        let mut table = vec![[0u64; 2]; entries];
        for key in 1..=entries as u64 * 2 / 3 {
            let mut at = mix(key) as usize % entries;
            while table[at][0] != 0 {
                at = (at + 1) % entries;
            }
            table[at] = [key, mix(!key)];
        }
        let path = options.directory.join(format!("lacuna-warm-start-{}", std::process::id()));
        let create = File::options().read(true).write(true).create_new(true).open(&path);
        let file = create.map_err(|error| format!("{}: {error}", path.display()))?;
        let image = Self { path, file, entries };
        let mut to = BufWriter::with_capacity(1 << 20, &image.file);
        for entry in &table {
            to.write_all(&entry[0].to_ne_bytes())?;
            to.write_all(&entry[1].to_ne_bytes())?;
        }
        to.flush()?;
        drop(to);
        image.file.sync_all()?;
        Ok(image)
    }

    /// An arena that shows the file, as a program has it when it starts.
    fn arena(&self) -> lacuna::Result<Arena> {
        let template = Template::file(&self.file)?;
        Arena::builder(self.entries * ENTRY).name("table").template(template).reserve()
    }

    /// Starts the program: with a trace it replays that, and then it answers.
    fn start(&self, lookups: usize, trace: Option<&[u8]>) -> Result<Start, Box<dyn Error>> {
        let began = Instant::now();
        let arena = self.arena()?;
        let replayed = match trace {
            Some(trace) => arena.replay(&Trace::load(trace)?)?.present_bytes,
            None => 0,
        };
        let answers = self.answer(&arena, lookups)?;
        let time = began.elapsed();
        Ok(Start { time, faults: arena.stats().faults, replayed, answers })
    }

    /// The first start, which is recorded.
    fn record(&self, lookups: usize) -> Result<(Start, Trace), Box<dyn Error>> {
        let began = Instant::now();
        let arena = self.arena()?;
        arena.start_recording(self.entries * ENTRY / lacuna::page_size())?;
        let answers = self.answer(&arena, lookups)?;
        let time = began.elapsed();
        let trace = arena.stop_recording()?;
        if !trace.is_complete() {
            return Err("an arena has more pages than it has".into());
        }
        Ok((Start { time, faults: arena.stats().faults, replayed: 0, answers }, trace))
    }

    /// Looks up keys that are the same each time; the sum of their values.
    fn answer(&self, arena: &Arena, lookups: usize) -> Result<u64, Box<dyn Error>> {
        // SAFETY: the arena is as long as the table, is aligned to more than a page, has nothing but words
        // in it, and is not written while this lives.
        let table =
            unsafe { std::slice::from_raw_parts(arena.as_ptr().cast::<[u64; 2]>(), self.entries) };
        let keys = self.entries as u64 * 2 / 3;
        let mut sum = 0u64;
        for lookup in 0..lookups as u64 {
            let key = 1 + mix(lookup + 7) % keys;
            let mut at = mix(key) as usize % self.entries;
            while table[at][0] != key {
                if table[at][0] == 0 {
                    return Err(format!("key {key} is not in the table").into());
                }
                at = (at + 1) % self.entries;
            }
            sum = sum.wrapping_add(table[at][1]);
        }
        Ok(sum)
    }

    /// Has the page cache hold all of the file.
    fn warm(&self) -> std::io::Result<()> {
        std::io::copy(&mut File::open(&self.path)?, &mut std::io::sink()).map(drop)
    }

    /// Has the page cache drop the file, which is on the disk.
    fn cool(&self) -> std::io::Result<()> {
        let advice = libc::POSIX_FADV_DONTNEED;
        // SAFETY: it is advice about a file of ours.
        match unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, advice) } {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(error)),
        }
    }
}
