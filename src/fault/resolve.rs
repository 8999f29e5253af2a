//! The policy: what to install for a fault, and when not to.

use super::admit::{admit_past_limit, admit_writer};
use super::backend::Backend;
use super::bits::Snapshot;
use super::decode::Access;
use super::fill::add;
use super::huge::{fill_chunk, fill_chunk_in_place};
use super::ledger::Charge;
use super::lend::{is_exhausted, lend};
use super::merge::merge_any;
use super::region::{Counters, Region};
use super::source::Content;
use super::tables::Chunk;
use super::tuning::LONELY_PAGES;
use super::verify::verify;
use super::violation::Refusal;
use super::want::Want;
use crate::sys::pause;
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
pub(super) const ATTEMPTS: u32 = 10;

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
pub(super) fn alone(page: usize) -> Range<usize> {
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
pub(super) fn may_pass(region: &Region, errno: Errno) -> bool {
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
