//! Making pages present ahead of touching them.

use super::Arena;
use crate::Errno;
use crate::atomic::Ordering;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::decode::Access;
use crate::fault::fill::add;
use crate::fault::ledger::Charge;
use crate::fault::lend::is_exhausted;
use crate::fault::merge::merge_any;
use crate::fault::region::Region;
use crate::fault::resolve::{fill_whole, pause};
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::sys;
use core::ops::Range;
use core::ptr;

/// What came of one try at a chunk.
enum Attempt {
    /// The chunk's part of the range is present.
    Done,
    /// Something was in the way that is about to go: look again.
    Again(Errno),
    /// All buffers of the page function are in use, or all of the budget is promised.
    Busy,
    /// The budget is full of pages that are there, some of them maybe in lent chunks.
    Exhausted,
    /// The process has no mapping left for a run of present pages.
    Unmapped,
}

/// How often a page may be found neither recorded nor installable before that is an error: another
/// thread that has just installed it records it within microseconds.
const ATTEMPTS: u32 = 1000;

impl Arena {
    /// Makes every page of `range` (bytes, whole pages) present, with the template's content and
    /// memory of its own. Afterwards the range is safe for system calls too, and touching it does
    /// not fault.
    ///
    /// Pages that are present already stay as they are. If it fails half-way, what was populated
    /// stays.
    ///
    /// # Errors
    /// - [`ErrorKind::OutOfBounds`], [`ErrorKind::Unaligned`]: no such range
    ///   ([`covering`](Self::covering) makes one).
    /// - [`ErrorKind::LimitExceeded`]: it reaches past the limit.
    /// - [`ErrorKind::Poisoned`]: part of it is [poisoned](Self::poison).
    /// - [`ErrorKind::BudgetExhausted`]: the budget has no room for it.
    /// - [`ErrorKind::TemplateUnreadable`]: the template's file shrank or its device failed.
    /// - [`ErrorKind::Os`] with `ENOMEM`: there is no memory.
    /// - [`ErrorKind::NotInherited`]: a forked child must not touch the arena.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see [`Arena`].
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
    /// arena.populate(0..1 << 20)?;
    /// assert_eq!(arena.stats().resident_bytes, 1 << 20);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn populate(&self, range: Range<usize>) -> Result<()> {
        self.check_inherited(Operation::Populate)?;
        let pages = self.pages(Operation::Populate, &range)?;
        let error = |kind| Error::new(Operation::Populate, kind).range(range.start, range.end);
        if pages.end > self.region().limit() {
            return Err(error(ErrorKind::LimitExceeded));
        }
        let chunk_pages = self.region().chunk_pages();
        let mut page = pages.start;
        while page < pages.end {
            let index = page / chunk_pages;
            let first = index * chunk_pages;
            let part = page - first..(pages.end - first).min(chunk_pages);
            page = first + part.end;
            self.populate_chunk(index, part).map_err(|cause| match cause {
                Cause::Kind(kind) => error(kind),
                Cause::Os(errno) => {
                    Error::os(Operation::Populate, errno).range(range.start, range.end)
                }
            })?;
        }
        Ok(())
    }

    fn populate_chunk(&self, index: usize, part: Range<usize>) -> Result<(), Cause> {
        // A whole chunk is owned while it is filled.
        let _blocked = SignalsBlocked::new();
        let mut attempts = ATTEMPTS;
        loop {
            let attempt = self.as_filler(index, |region, chunk| fill_gaps(region, chunk, &part));
            match attempt {
                Some(Ok(Attempt::Again(errno))) if attempts == 0 => return Err(Cause::Os(errno)),
                Some(Ok(Attempt::Again(_))) => {
                    attempts -= 1;
                    pause(10_000);
                }
                Some(Ok(Attempt::Busy)) => pause(10_000),
                // Each such round recalls a chunk, or waits for somebody who does.
                Some(Ok(Attempt::Exhausted)) if !is_exhausted(&self.pin()) => {}
                Some(Ok(Attempt::Exhausted)) => {
                    return Err(Cause::Kind(ErrorKind::BudgetExhausted));
                }
                Some(Ok(Attempt::Unmapped)) if merge_any(&self.pin()) => {}
                Some(Ok(Attempt::Unmapped)) => return Err(Cause::Os(Errno::ENOMEM)),
                Some(Ok(Attempt::Done)) | None => return Ok(()),
                Some(Err(cause)) => return Err(cause),
            }
        }
    }
}

/// Why populating failed.
enum Cause {
    Kind(ErrorKind),
    Os(Errno),
}

/// Installs the absent pages of `part`, as a filler of `chunk`.
fn fill_gaps(region: &Region, chunk: &Chunk<'_>, part: &Range<usize>) -> Result<Attempt, Cause> {
    if chunk.poisoned().next_set(part.clone()) < part.end {
        return Err(Cause::Kind(ErrorKind::Poisoned));
    }
    // Relaxed: see where it is cleared.
    let huge = region.huge.load(Ordering::Relaxed) != 0;
    if huge && part.len() == region.chunk_pages() && fill_whole(region, chunk) {
        return Ok(Attempt::Done);
    }
    loop {
        let present = chunk.present();
        let start = present.next_clear(part.clone());
        if start == part.end {
            // A chunk that could not be taken back whole is lent in part.
            return match chunk.state.is_lent() {
                true => populate_lent(region, chunk, part),
                false => Ok(Attempt::Done),
            };
        }
        let gap = start..present.next_set(start..part.end);
        let pages = match region.ledger.charge(gap.len() as u64, region.budget) {
            Charge::Promised(pages) => pages as usize,
            Charge::Pending => return Ok(Attempt::Busy),
            Charge::Exhausted if chunk.is_present(start) => continue,
            Charge::Exhausted => return Ok(Attempt::Exhausted),
        };
        match add(region, chunk, start..start + pages, Access::Write).stopped_by {
            None => {}
            Some(errno @ (Errno::EEXIST | Errno::EAGAIN | Errno::EINTR)) => {
                return Ok(Attempt::Again(errno));
            }
            Some(Errno::EBUSY) => return Ok(Attempt::Busy),
            Some(Errno::ENOMEM) if region.backend == Backend::Mprotect => {
                return Ok(Attempt::Unmapped);
            }
            Some(Errno::EFAULT) => return Err(Cause::Kind(ErrorKind::TemplateUnreadable)),
            Some(errno) => return Err(Cause::Os(errno)),
        }
    }
}

/// Has the kernel fill `part` of a lent chunk, whose pages are charged already.
fn populate_lent(
    region: &Region,
    chunk: &Chunk<'_>,
    part: &Range<usize>,
) -> Result<Attempt, Cause> {
    let first = region.pages_of(chunk.index).start;
    let start = ptr::with_exposed_provenance_mut(region.address_of(first + part.start));
    let len = part.len() << region.page_shift;
    // SAFETY: populating changes no content, and the pages are a reservation's of ours.
    unsafe { sys::advise(start, len, libc::MADV_POPULATE_WRITE) }.map_err(Cause::Os)?;
    chunk.resident.set(part.clone());
    region.ledger.convert(chunk.lend().clear(part.clone()) as u64);
    Ok(Attempt::Done)
}
