//! Making pages present ahead of touching them.

use super::Arena;
use crate::Errno;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::admit::admit;
use crate::fault::backend::Backend;
use crate::fault::decode::Access;
use crate::fault::fill::{add, fill};
use crate::fault::ledger::Charge;
use crate::fault::lend::is_exhausted;
use crate::fault::merge::merge_any;
use crate::fault::region::Region;
use crate::fault::resolve::fill_whole;
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::fault::verify::is_accessible;
use crate::fault::want::Want;
use crate::sys;
use crate::sys::pause;
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
    /// Where there is a checkpoint and [`Tracking::Signal`](crate::Tracking::Signal), the range counts as
    /// written from here on: system calls could not write to it otherwise.
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
    /// - [`ErrorKind::MemoryTooShort`]: the file that is shared with other processes was cut short.
    /// - [`ErrorKind::NoHugePages`]: the system's pool of huge pages is empty.
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
            let whole = [Part { pages: part.clone(), access: Access::Write }];
            let populated = self.populate_chunk(index, &whole).map_err(|(_, cause)| cause);
            populated.and_then(|()| self.admit_system_calls(index, part)).map_err(|cause| {
                match cause {
                    Cause::Kind(kind) => error(kind),
                    Cause::Os(errno) => {
                        Error::os(Operation::Populate, errno).range(range.start, range.end)
                    }
                }
            })?;
        }
        Ok(())
    }

    /// Lifts the write protection of a checkpoint where the kernel could not do it by itself.
    fn admit_system_calls(&self, index: usize, part: Range<usize>) -> Result<(), Cause> {
        if !self.region().track.is_by_signal() {
            return Ok(());
        }
        let blocked = SignalsBlocked::new();
        let admitted = self.as_owner(&blocked, index, |region, chunk| admit(region, chunk, part));
        admitted.unwrap_or(Ok(())).map_err(Cause::Os)
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
                // So it is said of an empty pool as well, which others may have filled meanwhile.
                Some(Ok(Attempt::Again(_))) if attempts == 0 && self.region().backing.is_huge() => {
                    return failed(Cause::Kind(ErrorKind::NoHugePages));
                }
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
    if chunk.poisoned().next_set(part.clone()) < part.end {
        return Err(Cause::Kind(ErrorKind::Poisoned));
    }
    let huge = region.may_be_huge(chunk) && *access == Access::Write;
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
                false if region.backing.is_shared() => install_again(region, chunk, part),
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
        match add(region, chunk, start..start + pages, Want::ahead_of(*access)).stopped_by {
            None => {}
            Some(Errno::EEXIST) if region.backing.is_shared() => match adopt(region, chunk, part) {
                Some(attempt) => return Ok(attempt),
                None => continue,
            },
            Some(errno @ (Errno::EEXIST | Errno::EAGAIN | Errno::EINTR)) => {
                return Ok(Attempt::Again(errno));
            }
            Some(Errno::EBUSY) => return Ok(Attempt::Busy),
            Some(Errno::ENOMEM) if region.backend == Backend::Mprotect => {
                return Ok(Attempt::Unmapped);
            }
            Some(Errno::EFAULT) => {
                let page = chunk.present().next_clear(part.clone());
                let page = region.pages_of(chunk.index).start + page;
                return Err(Cause::Kind(unreadable(region, page)));
            }
            Some(Errno::ENOMEM) if region.backing.is_huge() => {
                return Err(Cause::Kind(ErrorKind::NoHugePages));
            }
            Some(errno) => return Err(Cause::Os(errno)),
        }
    }
}

/// Takes on the first absent page of `part`, which another process has installed; `None` if that is done.
fn adopt(region: &Region, chunk: &Chunk<'_>, part: &Range<usize>) -> Option<Attempt> {
    let page = chunk.present().next_clear(part.clone());
    if page == part.end {
        return None;
    }
    match region.ledger.charge(1, region.budget) {
        Charge::Promised(_) => {}
        Charge::Pending => return Some(Attempt::Busy),
        Charge::Exhausted => return Some(Attempt::Exhausted),
    }
    let there = is_accessible(region, region.pages_of(chunk.index).start + page, Access::Write);
    let new = if there { chunk.resident.set(page..page + 1) } else { 0 };
    region.ledger.settle(1, new as u64, 0);
    // If it is not there, somebody has discarded it since.
    (!there).then_some(Attempt::Again(Errno::EEXIST))
}

/// Installs those of `part`, all of which are counted as present, that another process has discarded:
/// without another charge, as a touch would.
fn install_again(
    region: &Region,
    chunk: &Chunk<'_>,
    part: &Range<usize>,
) -> Result<Attempt, Cause> {
    let first = region.pages_of(chunk.index).start;
    let address = |page: usize| ptr::with_exposed_provenance_mut(region.address_of(first + page));
    let len = part.len() << region.page_shift;
    // SAFETY: populating changes no content, and the pages are a reservation's of ours.
    match unsafe { sys::advise(address(part.start), len, libc::MADV_POPULATE_WRITE) } {
        Ok(()) => return Ok(Attempt::Done),
        Err(Errno::EFAULT) => {}
        Err(errno) => return Err(Cause::Os(errno)),
    }
    for page in part.clone() {
        // SAFETY: the page is one of a reservation of ours.
        if unsafe { sys::resident(address(page)) } == Ok(true) {
            continue;
        }
        match fill(region, first + page..first + page + 1, Want::Memory).stopped_by {
            None | Some(Errno::EEXIST | Errno::EAGAIN | Errno::EINTR | Errno::EBUSY) => {}
            Some(Errno::EFAULT) => {
                return Err(Cause::Kind(unreadable(region, first + page)));
            }
            Some(Errno::ENOMEM) if region.backing.is_huge() => {
                return Err(Cause::Kind(ErrorKind::NoHugePages));
            }
            Some(errno) => return Err(Cause::Os(errno)),
        }
    }
    Ok(Attempt::Again(Errno::EFAULT))
}

/// Why a page cannot be installed whose content, or whose place, is not there.
#[cold]
fn unreadable(region: &Region, page: usize) -> ErrorKind {
    match region.backing.ends_before(page << region.page_shift) {
        true => ErrorKind::MemoryTooShort,
        false => ErrorKind::TemplateUnreadable,
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
