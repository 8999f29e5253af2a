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
            self.populate_chunk(index, &[Part { pages: part, access: Access::Write }]).map_err(
                |(_, cause)| match cause {
                    Cause::Kind(kind) => error(kind),
                    Cause::Os(errno) => {
                        Error::os(Operation::Populate, errno).range(range.start, range.end)
                    }
                },
            )?;
        }
        Ok(())
    }

    /// Makes `parts` of chunk `index` present, one after the other. If it fails, tells at which.
    pub(super) fn populate_chunk(
        &self,
        index: usize,
        parts: &[Part],
    ) -> Result<(), (usize, Cause)> {
        // A whole chunk is owned while it is filled.
        let _blocked = SignalsBlocked::new();
        let mut attempts = ATTEMPTS;
        let mut done = 0;
        loop {
            let attempt =
                self.as_filler(index, |region, chunk| fill_parts(region, chunk, parts, &mut done));
            let failed = |cause| Err((done, cause));
            match attempt {
                Some(Ok(Attempt::Again(errno))) if attempts == 0 => {
                    return failed(Cause::Os(errno));
                }
                Some(Ok(Attempt::Again(_))) => {
                    attempts -= 1;
                    pause(10_000);
                }
                Some(Ok(Attempt::Busy)) => pause(10_000),
                // Each such round recalls a chunk, or waits for somebody who does.
                Some(Ok(Attempt::Exhausted)) if !is_exhausted(&self.pin()) => {}
                Some(Ok(Attempt::Exhausted)) => {
                    return failed(Cause::Kind(ErrorKind::BudgetExhausted));
                }
                Some(Ok(Attempt::Unmapped)) if merge_any(&self.pin()) => {}
                Some(Ok(Attempt::Unmapped)) => return failed(Cause::Os(Errno::ENOMEM)),
                Some(Ok(Attempt::Done)) | None => return Ok(()),
                Some(Err(cause)) => return failed(cause),
            }
        }
    }
}

/// Pages of a chunk, and what they are to be: memory, or, where it is enough to read them and they are
/// zeroes, the zero page.
pub(super) struct Part {
    pub(super) pages: Range<usize>,
    pub(super) access: Access,
}

/// Why populating failed.
pub(super) enum Cause {
    Kind(ErrorKind),
    Os(Errno),
}

/// Installs the absent pages of those `parts` that are not `done`, as a filler of `chunk`.
fn fill_parts(
    region: &Region,
    chunk: &Chunk<'_>,
    parts: &[Part],
    done: &mut usize,
) -> Result<Attempt, Cause> {
    while let Some(part) = parts.get(*done) {
        match fill_gaps(region, chunk, part)? {
            Attempt::Done => *done += 1,
            attempt => return Ok(attempt),
        }
    }
    Ok(Attempt::Done)
}

/// Installs the absent pages of `part`, as a filler of `chunk`.
fn fill_gaps(region: &Region, chunk: &Chunk<'_>, part: &Part) -> Result<Attempt, Cause> {
    let Part { pages: part, access } = part;
    // Relaxed: see where it is cleared.
    let huge = region.huge.load(Ordering::Relaxed) != 0 && *access == Access::Write;
    if huge && part.len() == region.chunk_pages() && fill_whole(region, chunk) {
        return Ok(Attempt::Done);
    }
    loop {
        let present = chunk.present();
        let start = present.next_clear(part.clone());
        if start == part.end {
            // A chunk that could not be taken back whole is lent in part.
            return match chunk.state.is_lent() && *access == Access::Write {
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
        match add(region, chunk, start..start + pages, *access).stopped_by {
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
