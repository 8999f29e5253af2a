//! The policy: what to install for a fault, and when not to.

use super::backend::Backend;
use super::bits::Snapshot;
use super::decode::Access;
use super::fill::{add, fill};
use super::huge::{fill_chunk, fill_chunk_in_place};
use super::ledger::Charge;
use super::lend::{is_exhausted, lend};
use super::merge::merge_any;
use super::protect;
use super::region::{Counters, Region};
use super::source::Content;
use super::tables::Chunk;
use super::track::{admit_past_limit, admit_writer};
use super::tuning::LONELY_PAGES;
use super::violation::Refusal;
use super::want::Want;
use crate::sys;
use core::ops::Range;
use nix::errno::Errno;

/// What to do about a fault.
enum Plan {
    /// Nothing more.
    Done,
    /// The page is poisoned, or said to be present: find out what is wrong.
    Verify,
    /// Lend the chunk.
    Lend,
    /// Fill the whole chunk with a huge page.
    FillWhole,
    /// Install these pages, or at least the faulting one, which has no present page beside it if it
    /// is lonely.
    Install { window: Range<usize>, lonely: bool },
}

/// What came of trying to install some pages.
enum Attempt {
    /// The faulting page is there.
    Resolved,
    /// Another thread is about to change the answer.
    Again,
    /// The budget is full of pages that are there.
    Exhausted,
    /// The kernel stopped on its way to the page.
    Short,
    /// The kernel stopped at the page.
    Stopped(Errno),
}

/// How often the kernel may refuse one page for a reason that may pass, a millisecond apart, before
/// that is a violation.
const ATTEMPTS: u32 = 10;

/// Makes page `page` of the reservation accessible, or says why it must not be. `Ok` means: let
/// the instruction run again. It may fault again, but each such round is one in which another
/// thread, or the kernel, has made progress.
///
/// Part of the handler's frame: one of its own would take another 100 bytes.
#[inline(always)]
pub(crate) fn resolve(region: &Region, page: usize, access: Access) -> Result<(), Refusal> {
    Counters::count(&region.counters.faults);
    let limit = region.limit();
    if page >= limit {
        return match admit_past_limit(region, page, access) {
            true => Ok(()),
            false => Err(Refusal::Limit),
        };
    }
    let Some((chunk, index)) = region.chunk_of(page) else {
        return Err(Refusal::Unresolvable(Errno::ENOENT));
    };
    if !region.enter(&chunk) {
        // Somebody else changes what is here; the work is short.
        Counters::count(&region.counters.raced);
        pause(10_000);
        return Ok(());
    }
    let whole = |done| match done {
        true => Plan::Done,
        false => Plan::Install { window: alone(index), lonely: false },
    };
    let decision = match chunk.state.is_poisoned() {
        false => decide(region, &chunk, index, access),
        true => decide_beside_poison(region, &chunk, index, access),
    };
    let plan = match decision {
        // Part of a chunk that could not be filled may be there now: the page alone, then.
        Plan::Lend => whole(lend_alone(region, &chunk)),
        Plan::FillWhole => whole(fill_whole(region, &chunk)),
        plan => plan,
    };
    let result = match plan {
        Plan::Install { window, lonely } => {
            let result = install(region, &chunk, window, index, access);
            if lonely {
                chunk.state.count_lonely();
            }
            result
        }
        Plan::Verify => verify(region, &chunk, index, access, Errno::EEXIST),
        Plan::Lend | Plan::FillWhole | Plan::Done => Ok(()),
    };
    region.leave(&chunk);
    match result {
        // Not while inside a chunk: another fault may be recalling that very one.
        Err(refusal) if make_room(region, page, refusal) => Ok(()),
        result => result,
    }
}

/// Whether what a fault was refused for can be had from elsewhere, or as the chunk's owner: then
/// the instruction runs again.
#[cold]
#[inline(never)]
fn make_room(region: &Region, page: usize, refusal: Refusal) -> bool {
    match refusal {
        Refusal::Protected => admit_writer(region, page),
        Refusal::Budget => !is_exhausted(region),
        Refusal::OutOfMemory => region.backend == Backend::Mprotect && merge_any(region),
        _ => false,
    }
}

/// Decides what to do, as a filler of the page's chunk. Kept out of the frame that the work is done
/// in: it looks at many bits.
#[inline(never)]
fn decide(region: &Region, chunk: &Chunk<'_>, page: usize, access: Access) -> Plan {
    // Asked first: a lonely page that it counts is then seen as present, and threads that race for
    // it do not take each other for scattered touches.
    let lonely_pages = chunk.state.lonely();
    let present = chunk.present();
    if present.get(page) {
        return Plan::Verify;
    }
    if region.log.is_open() {
        return recorded(region, chunk, page, access);
    }
    let lonely = region.lends && is_lonely(&present, page);
    if lonely && lonely_pages >= LONELY_PAGES && region.may_lend(chunk) {
        return Plan::Lend;
    }
    let window = region.plan(chunk, page, &present);
    match window.len() == region.chunk_pages() && wants_huge(region, chunk, access) {
        true => Plan::FillWhole,
        false => Plan::Install { window, lonely },
    }
}

/// Records a first touch. The page comes alone while that goes on: what a window, a huge page or the
/// kernel would fill beside it would be touched later without our knowing.
#[cold]
#[inline(never)]
fn recorded(region: &Region, chunk: &Chunk<'_>, page: usize, access: Access) -> Plan {
    region.log.record(region.pages_of(chunk.index).start.wrapping_add(page), access);
    Plan::Install { window: alone(page), lonely: false }
}

/// As [`decide`], for a chunk with poisoned pages: it is neither lent nor filled whole, and no window reaches
/// a poisoned page.
#[cold]
#[inline(never)]
fn decide_beside_poison(region: &Region, chunk: &Chunk<'_>, page: usize, access: Access) -> Plan {
    let present = chunk.present();
    if present.get(page) || chunk.is_poisoned(page) {
        return Plan::Verify;
    }
    if region.log.is_open() {
        return recorded(region, chunk, page, access);
    }
    let window = region.plan(chunk, page, &present);
    let (mut start, mut end) = (page, page.saturating_add(1));
    while start > window.start && !chunk.is_poisoned(start.saturating_sub(1)) {
        start = start.saturating_sub(1);
    }
    while end < window.end && !chunk.is_poisoned(end) {
        end = end.saturating_add(1);
    }
    Plan::Install { window: start..end, lonely: false }
}

/// The page and nothing else.
fn alone(page: usize) -> Range<usize> {
    page..page.saturating_add(1)
}

/// Installs `window`, or at least the faulting page.
#[inline(always)]
fn install(
    region: &Region,
    chunk: &Chunk<'_>,
    window: Range<usize>,
    page: usize,
    access: Access,
) -> Result<(), Refusal> {
    let mut result = attempt(region, chunk, window, page, access);
    let mut attempts = ATTEMPTS;
    loop {
        match result {
            Attempt::Resolved => return Ok(()),
            Attempt::Again => {
                pause(10_000);
                return Ok(());
            }
            Attempt::Exhausted if chunk.is_present(page) => return Ok(()),
            Attempt::Exhausted => {
                return Err(Refusal::Budget);
            }
            // The window met something on its way: the page alone, then.
            Attempt::Short => {}
            Attempt::Stopped(errno) if attempts > 0 && may_pass(region, errno) => {
                attempts = attempts.wrapping_sub(1);
                pause(1_000_000);
            }
            Attempt::Stopped(Errno::ENOMEM) => return Err(Refusal::OutOfMemory),
            Attempt::Stopped(Errno::EFAULT) => return Err(Refusal::TemplateUnreadable),
            Attempt::Stopped(errno) => match verify(region, chunk, page, access, errno) {
                // Of huge pages there may be one again in a moment, or another thread is about to
                // install the last in this place.
                Err(Refusal::OutOfMemory) if attempts > 0 => {
                    attempts = attempts.wrapping_sub(1);
                    pause(1_000_000);
                }
                result => return result,
            },
        }
        result = attempt(region, chunk, alone(page), page, access);
    }
}

/// Whether the kernel may do later what it refuses now. A mapping that it does not have comes from
/// nowhere but us.
fn may_pass(region: &Region, errno: Errno) -> bool {
    match errno {
        Errno::ENOMEM => region.backend == Backend::Userfaultfd,
        Errno::EAGAIN | Errno::EINTR => true,
        _ => false,
    }
}

/// Whether no page beside an absent one is present, as far as its chunk goes.
fn is_lonely(present: &Snapshot, page: usize) -> bool {
    !present.get(page.wrapping_add(1)) && !page.checked_sub(1).is_some_and(|it| present.get(it))
}

/// Lends a chunk, if this is its only filler.
#[inline(never)]
fn lend_alone(region: &Region, chunk: &Chunk<'_>) -> bool {
    region.alone(chunk, || lend(region, chunk))
}

/// Whether a whole chunk is worth a huge page: reads of zeroes take no memory at all.
fn wants_huge(region: &Region, chunk: &Chunk<'_>, access: Access) -> bool {
    let is_zero = || {
        let first = region.pages_of(chunk.index).start;
        matches!(region.source.at(first, region.page_shift), Content::Zero)
    };
    region.may_be_huge(chunk) && !(access == Access::Read && is_zero())
}

/// Fills a chunk without any page with a huge page, if this is its only filler. Signals are blocked,
/// by our handler's mask or by the caller: it owns the chunk for a while.
#[inline(never)]
pub(crate) fn fill_whole(region: &Region, chunk: &Chunk<'_>) -> bool {
    // Looked at again: another filler may have come and gone before.
    let fill = match region.backend {
        Backend::Userfaultfd => fill_chunk,
        Backend::Mprotect => fill_chunk_in_place,
    };
    region.alone(chunk, || {
        chunk.present().is_empty() && !chunk.state.is_poisoned() && fill(region, chunk)
    })
}

/// Installs as much of `window` as the budget allows, the faulting page before all.
#[inline(never)]
fn attempt(
    region: &Region,
    chunk: &Chunk<'_>,
    window: Range<usize>,
    page: usize,
    access: Access,
) -> Attempt {
    let promised = match region.ledger.charge(window.len() as u64, region.budget) {
        Charge::Promised(pages) => pages as usize,
        Charge::Pending => return Attempt::Again,
        Charge::Exhausted => return Attempt::Exhausted,
    };
    let window = shrink(window, page, promised);
    let (start, len) = (window.start, window.len());
    let filled = add(region, chunk, window, Want::of_fault(access, len));
    match filled.stopped_by {
        _ if start.wrapping_add(filled.pages()) > page => Attempt::Resolved,
        // All buffers of the page function are in use.
        Some(Errno::EBUSY) | None => Attempt::Again,
        Some(_) if len > 1 => Attempt::Short,
        Some(errno) => Attempt::Stopped(errno),
    }
}

/// `pages` pages of `window`, `page` among them: those from it on first.
fn shrink(window: Range<usize>, page: usize, pages: usize) -> Range<usize> {
    let start = page.min(window.end.saturating_sub(pages)).max(window.start);
    start..start.saturating_add(pages)
}

/// Makes sure that a page which is said to be present, and not poisoned, can be accessed: that
/// another thread has just installed it, or the kernel can, and the instruction will not fault on
/// it for ever.
///
/// What stands in the way may be a marker that somebody left behind our back (write protection,
/// poison, a guard), or the page may have been dropped behind our back: then it is installed again.
#[inline(never)]
fn verify(
    region: &Region,
    chunk: &Chunk<'_>,
    page: usize,
    access: Access,
    errno: Errno,
) -> Result<(), Refusal> {
    if chunk.is_poisoned(page) {
        return Err(Refusal::Poisoned);
    }
    Counters::count(&region.counters.raced);
    let page_index = region.pages_of(chunk.index).start.saturating_add(page);
    if region.backend == Backend::Mprotect {
        return protect::verify(region, chunk, page, access, errno);
    }
    let tracked = access == Access::Write && region.track.is_by_signal();
    // The kernel cannot write to a protected page.
    let asked = if tracked { Access::Read } else { access };
    if is_accessible(region, page_index, asked) {
        // Unless present by its bit, it is as good as: somebody is about to set it.
        let protected = tracked && chunk.is_present(page);
        return if protected { Err(Refusal::Protected) } else { Ok(()) };
    }
    let errno = match chunk.is_present(page) {
        true => {
            match install_again(region, page_index, access, wanted_again(chunk, page, access)) {
                Ok(()) => return Ok(()),
                // The kernel fills the chunk by itself, so it is not that the page is missing.
                Err(Errno::ENOENT) => errno,
                Err(errno) => errno,
            }
        }
        false => errno,
    };
    match errno {
        // UFFDIO_COPY says so too when the pool of huge pages is empty (seen on Linux 6.18), as it does
        // of a page that is there and cannot be written, having to be copied.
        Errno::EEXIST if region.backing.is_huge() => Err(Refusal::OutOfMemory),
        // Another process had installed it, and has discarded it since.
        Errno::EEXIST if was_discarded(region, page_index) => Ok(()),
        Errno::ENOMEM => Err(Refusal::OutOfMemory),
        errno => Err(Refusal::Unresolvable(errno)),
    }
}

/// What page `index` of a chunk, which is counted already, is installed again as: what is lent and read takes
/// no memory again. What is lent and written may become memory without being counted as that.
#[inline(never)]
fn wanted_again(chunk: &Chunk<'_>, index: usize, access: Access) -> Want {
    match chunk.lent().is_some_and(|lent| lent.get(index)) {
        true => Want::ahead_of(access),
        false => Want::Memory,
    }
}

/// Installs a page that is counted and charged already, so nothing is recorded again: somebody has
/// dropped it, or the kernel has, which may do so with what it finds elsewhere as well.
#[cold]
#[inline(never)]
fn install_again(region: &Region, page: usize, access: Access, want: Want) -> Result<(), Errno> {
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..ATTEMPTS {
        let filled = fill(region, alone(page), want);
        result = match filled.stopped_by {
            _ if filled.pages() == 1 => Ok(()),
            Some(Errno::EBUSY) | None => Ok(()),
            // Another thread was faster, or another process.
            Some(Errno::EEXIST) if is_accessible(region, page, access) => Ok(()),
            Some(errno) => Err(errno),
        };
        match result {
            Err(errno) if may_pass(region, errno) => pause(1_000_000),
            // Somebody may drop it again between the two; or something is in the way.
            Err(Errno::EEXIST) => pause(10_000),
            _ => break,
        }
    }
    result
}

/// Whether the memory is shared with other processes, and does not have a page now. There are no
/// markers in page tables that could look the same: only this library could have put them there.
#[cold]
#[inline(never)]
fn was_discarded(region: &Region, page: usize) -> bool {
    let start = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: the page is one of a reservation of ours.
    region.backing.is_shared() && unsafe { sys::resident(start) } == Ok(false)
}

/// Asks the kernel to fault the page in by itself, as madvise(2) MADV_POPULATE_READ or _WRITE does
/// without changing it (since Linux 5.14). EFAULT means that it could only raise SIGBUS again, and
/// EHWPOISON that the page is poisoned; any other failure is one that the instruction meets without
/// us.
pub(crate) fn is_accessible(region: &Region, page: usize, access: Access) -> bool {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    let start = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: populating changes no content, and the page is part of a reservation of ours.
    let result = unsafe { sys::advise(start, 1 << region.page_shift, advice) };
    match region.backend {
        Backend::Userfaultfd => !matches!(result, Err(Errno::EFAULT | Errno::EHWPOISON)),
        // EINVAL there: the protection does not allow it.
        Backend::Mprotect => !matches!(result, Err(Errno::EFAULT | Errno::EINVAL)),
    }
}

/// Lets other threads run. Sleeping, unlike sched_yield(2), also lets those run whose priority is
/// lower.
#[inline(never)]
pub(crate) fn pause(nanoseconds: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
    // SAFETY: the time is valid; the remainder is not asked for.
    unsafe { libc::nanosleep(&raw const time, core::ptr::null_mut()) };
}
