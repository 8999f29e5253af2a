//! What moving pages asks of the kernel, between two places whose chunks are owned by this thread.

use crate::Errno;
use crate::fault::backend::Backend;
use crate::fault::ledger::Ledger;
use crate::fault::region::Region;
use crate::fault::source::Content;
use crate::fault::tables::Chunk;
use crate::fault::{protect, uffd, uffd_of};
use crate::page::CHUNK;
use crate::sys;
use crate::sys::pause;
use crate::uffd::{CopyMode, MoveMode};
use core::ops::Range;
use core::ptr;

/// Pages of one chunk. Those in between are counted from the first.
pub(super) struct Place<'a> {
    pub(super) region: &'a Region,
    pub(super) chunk: Chunk<'a>,
    /// Counted from the chunk's start.
    pub(super) pages: Range<usize>,
}

/// Pages of each kind.
#[derive(Clone, Copy, Default)]
pub(super) struct Count {
    pub(super) resident: u64,
    pub(super) lent: u64,
}

/// How many pages have left their place, and how many have arrived: fewer, if some were not there.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) left: Count,
    pub(super) arrived: Count,
}

/// How often the kernel may say "try again" about one page before it is copied, a microsecond apart.
const ATTEMPTS: u32 = 100;

/// Pages that are copied before moving is tried again, if the kernel did not move one.
const COPIED_AT_ONCE: usize = 16;

/// What became of the first of some pages.
enum Outcome {
    /// So many were moved.
    Moved(usize),
    /// So many were copied, and are gone from their old place.
    Copied(usize),
    /// The page is not there, whatever the bits say.
    Missing,
    /// The kernel is changing something: try again.
    Again,
    /// The kernel does not move this page, or any.
    Refused {
        all: bool,
    },
    Failed(Errno),
}

impl<'a> Place<'a> {
    /// `len` pages of a chunk, from page `first` of the reservation on.
    pub(super) fn of(region: &'a Region, first: usize, len: usize) -> Option<Self> {
        let (chunk, start) = region.chunk_of(first)?;
        Some(Self { region, chunk, pages: start..start + len })
    }

    /// The number of a page in the reservation.
    pub(super) fn page(&self, index: usize) -> usize {
        self.region.pages_of(self.chunk.index).start + self.pages.start + index
    }

    pub(super) fn address(&self, index: usize) -> usize {
        self.region.address_of(self.page(index))
    }

    fn at(&self, index: usize) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address(index))
    }

    pub(super) fn has_poison(&self) -> bool {
        self.chunk.poisoned().next_set(self.pages.clone()) < self.pages.end
    }

    fn is_whole(&self) -> bool {
        self.pages.len() == self.region.chunk_pages()
    }

    /// Pages of the reservation.
    fn numbers(&self, pages: &Range<usize>) -> Range<usize> {
        self.page(pages.start)..self.page(pages.end)
    }

    /// Whether the kernel has the page at hand.
    fn is_there(&self, index: usize) -> bool {
        // SAFETY: the page is a reservation's of ours.
        let there = unsafe { sys::resident(self.at(index)) };
        there == Ok(true)
    }

    /// Has the kernel drop pages, and tell when they are touched.
    fn drop_pages(&self, pages: &Range<usize>) -> Result<(), Errno> {
        if self.region.backend == Backend::Mprotect {
            protect::close(self.region, self.numbers(pages))?;
        }
        protect::drop_pages(self.region, self.numbers(pages)).inspect_err(|_| {
            if self.region.backend == Backend::Mprotect {
                let inside = self.pages.start + pages.start..self.pages.start + pages.end;
                protect::reopen(self.region, &self.chunk, inside);
            }
        })
    }
}

/// Whether a page that is absent in one place reads otherwise than one that is absent in another.
pub(super) fn differs(source: &Region, from: usize, target: &Region, to: usize) -> bool {
    let is_zero =
        |region: &Region, page| matches!(region.source.at(page, region.page_shift), Content::Zero);
    !(is_zero(source, from) && is_zero(target, to))
}

/// Moves the present pages of `from` to `into`, where none is, and records in the bits what has come of it.
pub(super) fn relocate(from: &Place<'_>, into: &Place<'_>) -> (Tally, Result<(), Errno>) {
    let mut tally = Tally::default();
    let moves = [from, into].iter().all(|place| place.region.backend == Backend::Userfaultfd);
    if moves && from.is_whole() && into.is_whole() {
        // Frees an empty page table (since Linux 6.14), in whose place a huge page can come whole.
        // SAFETY: the chunk is owned by this thread, and has no pages.
        let _ = unsafe { sys::advise(into.at(0), CHUNK, libc::MADV_DONTNEED) };
    }
    let present = from.chunk.present();
    let (first, end) = (from.pages.start, from.pages.end);
    let mut start = present.next_set(first..end);
    while start < end {
        let run = start..present.next_clear(start..end);
        start = present.next_set(run.end..end);
        let run = run.start - first..run.end - first;
        if let Err(errno) = relocate_run(from, into, run, moves, &mut tally) {
            return (tally, Err(errno));
        }
    }
    (tally, Ok(()))
}

/// The same for pages that are present without a gap.
fn relocate_run(
    from: &Place<'_>,
    into: &Place<'_>,
    run: Range<usize>,
    moves: bool,
    tally: &mut Tally,
) -> Result<(), Errno> {
    let mut page = run.start;
    // Pages before this one are copied.
    let mut copied_to = if moves { page } else { run.end };
    let mut attempts = ATTEMPTS;
    while page < run.end {
        let outcome = match page < copied_to {
            true => copy(from, into, page..copied_to),
            false => shift(from, into, page..run.end),
        };
        attempts = if matches!(outcome, Outcome::Again) { attempts - 1 } else { ATTEMPTS };
        match outcome {
            Outcome::Moved(count) | Outcome::Copied(count) => {
                let is_copy = matches!(outcome, Outcome::Copied(_));
                tally.record(from, into, page..page + count, is_copy);
                page += count;
            }
            // Somebody has dropped it behind our back.
            Outcome::Missing => {
                tally.leave(from, page);
                if differs(from.region, from.page(page), into.region, into.page(page)) {
                    return Err(Errno::ENOENT);
                }
                page += 1;
            }
            Outcome::Again if attempts > 0 => pause(1_000),
            Outcome::Again if page < copied_to => return Err(Errno::EAGAIN),
            Outcome::Again | Outcome::Refused { all: false } => {
                copied_to = run.end.min(page + COPIED_AT_ONCE);
                attempts = ATTEMPTS;
            }
            Outcome::Refused { all: true } => copied_to = run.end,
            Outcome::Failed(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Has the kernel move the first of `pages`, as many as it does at once.
///
/// The count that it gives is not always all that it has done: when it starts over in the midst of a batch,
/// it meets its own pages. Nobody else can have put one there, so a page that is in the way and no longer in
/// its old place has arrived.
fn shift(from: &Place<'_>, into: &Place<'_>, pages: Range<usize>) -> Outcome {
    // The kernel asks that of the one that the target is registered with.
    let uffd = match uffd_of(into.region) {
        Ok(uffd) => uffd,
        Err(errno) => return Outcome::Failed(errno),
    };
    let len = pages.len() << from.region.page_shift;
    let (source, target) = (from.at(pages.start), into.at(pages.start));
    // SAFETY: both places are this thread's, and the target's content is to be the source's.
    let progress = unsafe { uffd.move_pages(target, source, len, MoveMode::DONTWAKE) };
    match (progress.bytes() >> from.region.page_shift, progress.errno()) {
        (0, None) => Outcome::Moved(pages.len()),
        (0, Some(Errno::EEXIST)) if !from.is_there(pages.start) => Outcome::Moved(1),
        (0, Some(Errno::EEXIST | Errno::EAGAIN | Errno::EINTR)) => Outcome::Again,
        (0, Some(Errno::ENOENT)) if !from.is_there(pages.start) => Outcome::Missing,
        // Shared with a forked child, or pinned.
        (0, Some(Errno::EBUSY | Errno::ENOENT)) => Outcome::Refused { all: false },
        (0, Some(_)) => Outcome::Refused { all: true },
        (moved, _) => Outcome::Moved(moved),
    }
}

/// Copies the first of `pages`, and drops them from where they were.
fn copy(from: &Place<'_>, into: &Place<'_>, pages: Range<usize>) -> Outcome {
    let copied = match into.region.backend {
        Backend::Userfaultfd => copy_in(from, into, &pages),
        Backend::Mprotect => write_in(from, into, &pages),
    };
    let copied = match copied {
        Ok(0) | Err(Errno::EAGAIN | Errno::EINTR) => return Outcome::Again,
        Ok(count) => pages.start..pages.start + count,
        // Moved before: see `shift`.
        Err(Errno::EEXIST) if !from.is_there(pages.start) => return Outcome::Moved(1),
        Err(Errno::EFAULT) if !from.is_there(pages.start) => return Outcome::Missing,
        Err(errno) => return Outcome::Failed(errno),
    };
    let Err(errno) = from.drop_pages(&copied) else { return Outcome::Copied(copied.len()) };
    // It is locked in memory: then it stays, and goes from where it was copied to.
    if into.drop_pages(&copied).is_err() {
        // Both are; now it is memory in two places.
        let inside = into.pages.start + copied.start..into.pages.start + copied.end;
        into.region.ledger.adopt(into.chunk.resident.set(inside) as u64);
    }
    Outcome::Failed(errno)
}

/// Installs copies of pages; tells how many.
fn copy_in(from: &Place<'_>, into: &Place<'_>, pages: &Range<usize>) -> Result<usize, Errno> {
    let len = pages.len() << from.region.page_shift;
    let (source, target) = (from.at(pages.start), into.at(pages.start));
    // SAFETY: both places are this thread's; what is not there is an error.
    let progress = unsafe { uffd()?.copy(target, source, len, CopyMode::DONTWAKE) };
    match (progress.bytes() >> from.region.page_shift, progress.errno()) {
        (0, Some(errno)) => Err(errno),
        (copied, _) => Ok(copied),
    }
}

/// The same where pages are written while they are inaccessible.
fn write_in(from: &Place<'_>, into: &Place<'_>, pages: &Range<usize>) -> Result<usize, Errno> {
    let len = pages.len() << from.region.page_shift;
    let source = from.at(pages.start).cast_const();
    // SAFETY: the target is this thread's; what cannot be read is an error.
    let written = unsafe { protect::write(into.address(pages.start), source, len) }?;
    let written = pages.start..pages.start + (written >> from.region.page_shift);
    if written.is_empty() {
        return Err(Errno::EFAULT);
    }
    match protect::open(into.region, into.numbers(&written)) {
        Ok(()) => Ok(written.len()),
        Err(errno) => {
            let _ = into.drop_pages(&written);
            Err(errno)
        }
    }
}

impl Tally {
    /// Takes pages that were moved, or copied, out of one place's bits and enters them in another's.
    fn record(&mut self, from: &Place<'_>, into: &Place<'_>, pages: Range<usize>, is_copy: bool) {
        for page in pages {
            let is_lent = self.leave(from, page);
            let at = into.pages.start + page;
            // What was copied is memory, whatever it was.
            if is_lent && !is_copy {
                into.chunk.lend().set(at..at + 1);
                self.arrived.lent += 1;
            } else {
                into.chunk.resident.set(at..at + 1);
                self.arrived.resident += 1;
            }
        }
    }

    /// Takes a page out of its place's bits; tells whether it was lent.
    fn leave(&mut self, from: &Place<'_>, page: usize) -> bool {
        let at = from.pages.start + page;
        let is_lent = from.chunk.lent().is_some_and(|lent| lent.clear_one(at));
        let was_resident = from.chunk.resident.clear_one(at);
        self.left.lent += u64::from(is_lent);
        self.left.resident += u64::from(was_resident);
        is_lent && !was_resident
    }

    /// Brings the books of one arena, within which pages were moved, in line.
    pub(super) fn enter_within(&self, ledger: &Ledger) {
        let (left, arrived) = (self.left, self.arrived);
        let converted = arrived.resident.saturating_sub(left.resident);
        ledger.convert(converted);
        ledger.release(
            left.resident.saturating_sub(arrived.resident),
            left.lent - converted - arrived.lent,
        );
    }
}
