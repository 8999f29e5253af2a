//! What the command line asks for.

use std::ffi::OsString;
use std::path::PathBuf;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Counts every 5-byte sequence of its input and prints the 20 most frequent.

Usage: ngrams [--hashmap] [--budget BYTES | --mmap] [FILE]...

  FILE            an input; - is standard input. Sequences do not span inputs.
  --hashmap       count with a HashMap too, and check that every count is equal
  --budget BYTES  let the counters take at most so much memory: a number of bytes, or of
                  KiB, MiB, GiB or TiB with K, M, G or T after it. A count that needs more
                  ends with a message and exit status 1
  --mmap          keep the counters in plain mmap(2) memory instead, to compare; listing
                  them needs Linux 6.7
  --help          print this

Without a FILE it counts standard input, if that is a file or a pipe and has data: a pipe
has a second to show some, name - to wait for longer. Otherwise it counts its own executable.

The counters are 32 bits wide: a sequence that occurs 2^32 times is an error. They lie 1024
to a page of 4 KiB, so each distinct sequence takes 4 KiB of memory at worst, and the
kernel's page tables come on top.
";

/// What to do.
pub(crate) enum Command {
    Count(Options),
    Help,
}

/// What to count, and how.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) inputs: Vec<Source>,
    pub(crate) hashmap: bool,
    pub(crate) mmap: bool,
    pub(crate) budget: Option<usize>,
}

/// An input as the command line names it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Source {
    File(PathBuf),
    Stdin,
}

impl Options {
    /// Reads the arguments, or says what is wrong with them.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, String> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.to_str() {
                Some("--help" | "-h") => return Ok(Command::Help),
                Some("--hashmap") => options.hashmap = true,
                Some("--mmap") => options.mmap = true,
                Some("--budget") => options.budget = Some(budget(arguments.next())?),
                Some("--") => options.inputs.extend(arguments.by_ref().map(file)),
                Some("-") => options.inputs.push(Source::Stdin),
                Some(option) if option.starts_with('-') => {
                    return Err(format!("no such option: {option}"));
                }
                _ => options.inputs.push(file(argument)),
            }
        }
        if options.mmap && options.budget.is_some() {
            return Err("plain mmap has no --budget".into());
        }
        Ok(Command::Count(options))
    }
}

fn file(name: OsString) -> Source {
    Source::File(name.into())
}

/// The argument of `--budget`.
fn budget(argument: Option<OsString>) -> Result<usize, String> {
    let argument = argument.ok_or("--budget needs a number of bytes")?;
    argument
        .to_str()
        .and_then(bytes)
        .ok_or_else(|| format!("--budget {}: not a number of bytes", argument.display()))
}

/// `64M` and the like.
fn bytes(text: &str) -> Option<usize> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let unit: usize = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(unit)
}
