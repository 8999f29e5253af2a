//! Bytes, block by block.

use crate::Result;
use crate::options::Source;
use crate::sequence::Sequence;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Bytes that are read at once: they stay in the processor's cache.
const BLOCK: usize = 256 << 10;

/// How long a pipe that nobody asked for by name may take to show data.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file or stream that is being read.
pub(crate) struct Input {
    name: String,
    reader: Box<dyn Read>,
    len: Option<u64>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that hold the last block.
    filled: usize,
}

/// Part of an input.
pub(crate) struct Block<'a> {
    /// The last four bytes of the block before, and then new ones: every sequence of the input is
    /// in exactly one block.
    pub(crate) bytes: &'a [u8],
    /// How many are new.
    pub(crate) fresh: usize,
}

/// Opens all inputs, so that what cannot be opened is found before anything is counted.
pub(crate) fn open(sources: &[Source]) -> Result<Vec<Input>> {
    if sources.is_empty() {
        return Ok(vec![default_input()?]);
    }
    sources
        .iter()
        .map(|source| match source {
            Source::File(path) => Input::file(path),
            Source::Stdin => Ok(Input::stdin()),
        })
        .collect()
}

/// What is counted when nothing is named: see `--help`.
fn default_input() -> Result<Input> {
    let stdin = fs::metadata("/dev/stdin").map(|metadata| metadata.file_type());
    if stdin.is_ok_and(|stdin| stdin.is_file() || stdin.is_fifo())
        && let Some(input) = Input::stdin().with_data_within(PATIENCE)?
    {
        return Ok(input);
    }
    let path = std::env::current_exe()?;
    eprintln!("ngrams: counting its own executable; see --help");
    Input::file(&path)
}

impl Input {
    fn new(name: String, reader: Box<dyn Read>, len: Option<u64>) -> Self {
        Self { name, reader, len, buffer: Vec::new(), filled: 0 }
    }

    fn file(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let named = |error: io::Error| format!("{name}: {error}");
        let file = File::open(path).map_err(named)?;
        let metadata = file.metadata().map_err(named)?;
        if metadata.is_dir() {
            return Err(format!("{name}: it is a directory; name files").into());
        }
        // What is no ordinary file has a length that means nothing.
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self::new(name, Box::new(file), len))
    }

    fn stdin() -> Self {
        Self::new("standard input".to_owned(), Box::new(io::stdin()), None)
    }

    /// The input, if it has any data, and shows it in time.
    fn with_data_within(self, patience: Duration) -> Result<Option<Self>> {
        let (sender, receiver) = mpsc::channel();
        // A thread whose data nobody waits for any more ends with the process.
        thread::spawn(move || {
            let mut first = vec![0; BLOCK];
            let read = read(&mut io::stdin(), &mut first);
            // Nobody may be waiting any more.
            _ = sender.send(read.map(|read| first[..read].to_vec()));
        });
        match receiver.recv_timeout(patience) {
            Ok(Ok(first)) if first.is_empty() => Ok(None),
            Ok(Ok(first)) => {
                let reader = Box::new(io::Cursor::new(first).chain(self.reader));
                Ok(Some(Self { reader, ..self }))
            }
            Ok(Err(error)) => Err(format!("{}: {error}", self.name).into()),
            Err(_) => Ok(None),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its length in bytes, where that is known beforehand.
    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Reads on; `None` at the end.
    pub(crate) fn next_block(&mut self) -> Result<Option<Block<'_>>> {
        self.buffer.resize(BLOCK, 0);
        let kept = self.filled.min(Sequence::LEN - 1);
        self.buffer.copy_within(self.filled - kept..self.filled, 0);
        let fresh = read(&mut self.reader, &mut self.buffer[kept..])
            .map_err(|error| format!("{}: {error}", self.name))?;
        self.filled = kept + fresh;
        let bytes = &self.buffer[..self.filled];
        Ok((fresh > 0).then_some(Block { bytes, fresh }))
    }
}

/// One read, done again when a signal interrupts it.
fn read(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
