//! What was recorded: the order of first touches, in memory and saved.
//!
//! ```text
//!  | magic | version | bytes of the body | body                                  | checksum |
//!     8        4               8         varints: see `encode`                         8
//! ```
//! Whatever is read is checked before it is believed: nothing is allocated because a header says so, and
//! a trace that does not lie within its arena is refused. The checksum is against accidents; a trace that
//! was made on purpose can at worst have the wrong pages populated.

use crate::error::{Error, ErrorKind, Operation};
use crate::fault::decode::Access;
use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::ops::Range;

const MAGIC: [u8; 8] = *b"lacuna\x1a\n";
const VERSION: u32 = 1;
/// Bytes before the body.
const HEADER: usize = MAGIC.len() + 4 + 8;
/// No body is longer: some hundred million runs.
const LONGEST: u64 = 1 << 30;

/// The order in which an arena's pages were touched first, from
/// [`Arena::stop_recording`](crate::Arena::stop_recording), to be saved and, in the next run, loaded and
/// [replayed](crate::Arena::replay).
///
/// Each page is in it once. It knows nothing of what the pages contained.
///
/// ```
/// use lacuna::{Arena, Trace};
///
/// let arena = Arena::builder(1 << 30).reserve()?;
/// arena.start_recording(1000)?;
/// // SAFETY: the byte is within the arena, and nobody else uses it.
/// unsafe { arena.as_ptr().add(1 << 20).write(1) };
/// let trace = arena.stop_recording()?;
///
/// let mut file = Vec::new();
/// trace.save(&mut file)?;
/// assert_eq!(Trace::load(file.as_slice())?, trace);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    page_shift: u32,
    /// Pages of the arena.
    pages: u64,
    /// Pages of all runs together.
    touched: u64,
    complete: bool,
    runs: Vec<Run>,
}

/// Pages that were touched one after the other, each from its first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) pages: u64,
    pub(super) access: Access,
}

/// A part of a [`Trace`]: pages that were touched one after the other, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Touched {
    /// Bytes of the arena, whole pages.
    pub range: Range<usize>,
    /// How each was touched first.
    pub access: Access,
}

impl Trace {
    /// The trace of `touches` in an arena of so many pages, each page at its first.
    pub(super) fn of(
        touches: impl Iterator<Item = (usize, Access)>,
        pages: usize,
        page_shift: u32,
        complete: bool,
    ) -> Self {
        let mut seen = HashSet::new();
        let mut trace =
            Self { page_shift, pages: pages as u64, touched: 0, complete, runs: Vec::new() };
        for (page, access) in touches.filter(|(page, _)| seen.insert(*page)) {
            trace.push(Run { first: page as u64, pages: 1, access });
        }
        trace
    }

    /// Adds a run that lies in the arena, and whose pages are not in the trace.
    fn push(&mut self, run: Run) {
        self.touched += run.pages;
        match self.runs.last_mut() {
            Some(last) if last.first + last.pages == run.first && last.access == run.access => {
                last.pages += run.pages;
            }
            _ => self.runs.push(run),
        }
    }

    /// Pages that were touched.
    #[must_use]
    pub fn len(&self) -> usize {
        self.touched as usize
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Whether all first touches are in it: the room that was asked for sufficed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Bytes of a page, where it was recorded.
    #[must_use]
    pub fn page_size(&self) -> usize {
        1 << self.page_shift
    }

    /// Bytes of the arena that it was recorded in.
    #[must_use]
    pub fn arena_len(&self) -> usize {
        (self.pages << self.page_shift) as usize
    }

    /// What was touched, first things first.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Touched> {
        let bytes = |pages: u64| (pages << self.page_shift) as usize;
        self.runs.iter().map(move |run| Touched {
            range: bytes(run.first)..bytes(run.first + run.pages),
            access: run.access,
        })
    }

    pub(super) fn runs(&self) -> &[Run] {
        &self.runs
    }

    pub(super) fn page_shift(&self) -> u32 {
        self.page_shift
    }

    /// Writes it to `to`, some two to six bytes a run, in one call.
    ///
    /// # Errors
    /// What writing says.
    pub fn save(&self, mut to: impl Write) -> io::Result<()> {
        let body = self.encode();
        let mut bytes = Vec::with_capacity(HEADER + body.len() + 8);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(body);
        bytes.extend(checksum(&bytes).to_le_bytes());
        to.write_all(&bytes)
    }

    /// Reads what [`save`](Self::save) wrote, and nothing after it. It takes memory in proportion to
    /// what it reads.
    ///
    /// # Errors
    /// What reading says; or an error that [is](std::io::Error::get_ref) a [`lacuna::Error`](crate::Error):
    /// - [`ErrorKind::TraceDamaged`]: it is no trace, ends too early, or was changed.
    /// - [`ErrorKind::TraceVersion`]: it was saved by another version, which this one does not know.
    pub fn load(mut from: impl Read) -> io::Result<Self> {
        let mut bytes = vec![0; HEADER];
        read_exact(&mut from, &mut bytes)?;
        let (magic, rest) = bytes.split_at(MAGIC.len());
        let (version, len) = rest.split_at(4);
        if magic != MAGIC {
            return Err(damaged());
        }
        if version != VERSION.to_le_bytes() {
            return Err(Error::new(Operation::LoadTrace, ErrorKind::TraceVersion).into());
        }
        let len = len.try_into().map_or(u64::MAX, u64::from_le_bytes);
        if len > LONGEST {
            return Err(damaged());
        }
        // It grows by what there is.
        if from.by_ref().take(len).read_to_end(&mut bytes)? as u64 != len {
            return Err(damaged());
        }
        let mut sum = [0; 8];
        read_exact(&mut from, &mut sum)?;
        match u64::from_le_bytes(sum) == checksum(&bytes) {
            true => Self::decode(&bytes[HEADER..]).ok_or_else(damaged),
            false => Err(damaged()),
        }
    }

    /// The page size (as a power of two), the arena's pages, whether it is complete; then the runs: how far
    /// each begins from the last one's end (zigzag), and how many pages it has, with its access.
    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put(&mut body, u64::from(self.page_shift));
        put(&mut body, self.pages);
        put(&mut body, u64::from(self.complete));
        let mut end = 0;
        for run in &self.runs {
            let step = run.first.wrapping_sub(end) as i64;
            put(&mut body, (step << 1 ^ step >> 63) as u64);
            put(&mut body, run.pages << 1 | u64::from(run.access == Access::Write));
            end = run.first + run.pages;
        }
        body
    }

    /// The reverse; `None` if it is nothing that `encode` makes.
    fn decode(mut body: &[u8]) -> Option<Self> {
        let page_shift = u32::try_from(take(&mut body)?).ok()?;
        let pages = take(&mut body)?;
        let complete = take(&mut body)?;
        // An arena lies in the address space.
        let len = 1u64.checked_shl(page_shift)?.checked_mul(pages)?;
        if len > isize::MAX as u64 || complete > 1 {
            return None;
        }
        let mut trace =
            Self { page_shift, pages, touched: 0, complete: complete == 1, runs: Vec::new() };
        let mut end = 0u64;
        while !body.is_empty() {
            let (step, run) = (take(&mut body)?, take(&mut body)?);
            let step = (step >> 1) as i64 ^ -((step & 1) as i64);
            let first = end.checked_add_signed(step)?;
            let run = Run { first, pages: run >> 1, access: access(run & 1) };
            end = first.checked_add(run.pages).filter(|end| *end <= pages)?;
            // No page is in it twice, so no more than there are; and no run is empty.
            if run.pages == 0 || trace.touched + run.pages > pages {
                return None;
            }
            trace.push(run);
        }
        Some(trace)
    }
}

fn access(bit: u64) -> Access {
    if bit != 0 { Access::Write } else { Access::Read }
}

fn damaged() -> io::Error {
    Error::new(Operation::LoadTrace, ErrorKind::TraceDamaged).into()
}

/// As [`Read::read_exact`]; the end of the file is damage.
fn read_exact(from: &mut impl Read, to: &mut [u8]) -> io::Result<()> {
    from.read_exact(to).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged(),
        _ => error,
    })
}

/// Appends a number, seven bits a byte, the lowest first.
fn put(body: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        body.push(number as u8 | 0x80);
        number >>= 7;
    }
    body.push(number as u8);
}

/// Takes a number off the front.
fn take(body: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = body.split_first()?;
        *body = rest;
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if byte & 0x80 == 0 {
            // What does not fit was lost.
            return (number >> shift == bits).then_some(number);
        }
    }
    None
}

/// FNV-1a, which tells any one changed byte.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
