//! Lending: a chunk of zeroes, or of a shared image, that keeps faulting here and there is
//! unregistered, so that the kernel fills it by itself, and charged as a whole; and recalling: it
//! is registered again, and charged for what it has become.

use super::backend::Backend;
use super::bits::Snapshot;
use super::ledger::Charge;
use super::mappings::MAPPINGS;
use super::pagemap::{Page, Pagemap};
use super::protect;
use super::region::Region;
use super::tables::Chunk;
use super::uffd_of;
use crate::atomic::{Ordering, fence};
use crate::uffd::RegisterMode;
use core::ops::Range;
use core::ptr;
use nix::errno::Errno;

/// Lends a chunk as its owner, if the budget and the mappings have room.
pub(crate) fn lend(region: &Region, chunk: &Chunk<'_>) -> bool {
    let pages = region.pages_of(chunk.index);
    let absent = pages.len().saturating_sub(chunk.count_present()) as u64;
    region.tables.summary().set(chunk.index);
    // The kernel would fill it unprotected; and while protection is lifted, nothing must be missing in the
    // range.
    let fits = chunk.state.may_be_lent()
        && region.track.is_off()
        && region.ledger.is_roomy(absent, region.budget)
        && MAPPINGS.reserve(region, chunk.index);
    if !fits {
        return false;
    }
    // Pairs with the fence in `Arena::set_limit`: either this sees the lower limit, or that sees
    // the chunk marked, waits for its owner and recalls it. So with `Arena::start_recording`.
    fence(Ordering::SeqCst);
    let promised = match region.ledger.charge(absent, region.budget) {
        Charge::Promised(promised) => promised,
        Charge::Pending | Charge::Exhausted => 0,
    };
    let allowed = promised == absent && pages.end <= region.limit() && !region.log.is_open();
    // More than none and fewer than all of them only if it failed half-way.
    let first = if allowed { unregister(region, chunk.index) } else { 0 };
    let lent = first == pages.len();
    let count = if first > 0 { chunk.lend_absent(first) } else { 0 };
    if lent {
        chunk.state.set_lent();
    } else {
        MAPPINGS.release(region, chunk.index);
    }
    region.ledger.settle(promised, 0, count as u64);
    lent
}

/// Takes a lent chunk back as its owner: from here on its missing pages fault again, and only those
/// that are there stay charged. `keep` it from being lent again?
///
/// This runs deep in the handler when a budget is full, so it is one frame with little in it.
#[inline(always)]
pub(crate) fn recall(region: &Region, chunk: &Chunk<'_>, keep: bool) -> Result<(), Errno> {
    take_back(region, chunk, keep)?;
    let result = release_missing(region, chunk);
    if region.backend == Backend::Mprotect {
        // Until then the rest of the chunk is still the kernel's to fill.
        result?;
        chunk.state.set_recalled(keep);
    }
    unmark(region, chunk.index);
    result
}

/// Gives back the charges of those pages of a recalled chunk that are not there.
#[inline(always)]
fn release_missing(region: &Region, chunk: &Chunk<'_>) -> Result<(), Errno> {
    // Should the kernel not tell which pages are missing, they stay charged, and are installed
    // without another charge.
    let pagemap = Pagemap::open()?;
    let pages = region.pages_of(chunk.index);
    let mut missing = 0u64;
    let mut result = Ok(());
    for page in 0..pages.len() {
        let is_missing = match region.backend {
            Backend::Userfaultfd => pagemap.is_missing(region, pages.start.wrapping_add(page)),
            Backend::Mprotect => {
                let page = pages.start.wrapping_add(page);
                protect::close_if_missing(region, chunk, &pagemap, page)
            }
        };
        match is_missing {
            Ok(false) => {}
            Ok(true) => {
                let was_lent = chunk.lend().clear_one(page);
                missing = missing.wrapping_add(u64::from(was_lent));
            }
            Err(errno) => {
                result = Err(errno);
                break;
            }
        }
    }
    region.ledger.release(0, missing);
    result
}

/// The first half of [`recall`], which is enough where every page is dropped next: the chunk's missing
/// pages fault again, but all of them stay charged. [`unmark`] it when they no longer are.
#[inline(always)]
pub(crate) fn take_back(region: &Region, chunk: &Chunk<'_>, keep: bool) -> Result<(), Errno> {
    if region.backend == Backend::Userfaultfd {
        register(region, chunk.index)?;
        chunk.state.set_recalled(keep);
    }
    Ok(())
}

/// Marks a chunk as one that is not lent, as its owner. Only once what it was charged for has been
/// given back: until then, whoever finds the budget full finds the mark, and waits.
pub(crate) fn unmark(region: &Region, index: usize) {
    // Pairs with the fence in `is_exhausted`: whoever misses the mark sees the charges gone.
    fence(Ordering::Release);
    MAPPINGS.release(region, index);
}

/// Whether a refused charge is final: nothing is left to recall, and what was recalled meanwhile is
/// used up.
#[cold]
#[inline(never)]
pub(crate) fn is_exhausted(region: &Region) -> bool {
    if region.lends && recall_any(region) {
        return false;
    }
    // Pairs with the fences before a chunk's mark, or its bit in the summary, is taken away.
    fence(Ordering::Acquire);
    region.ledger.is_full(region.budget)
}

/// How many lent chunks are tried when the kernel does not give back the first.
const TRIES: u32 = 8;

/// Takes back a lent chunk of a region, whose budget is full, from the handler of a fault elsewhere. False
/// if there is none that can be had.
#[inline(always)]
fn recall_any(region: &Region) -> bool {
    (0..TRIES).any(|_| recall_next(region))
}

#[inline(always)]
fn recall_next(region: &Region) -> bool {
    let Some(index) = next_lent(region, region.hand.load(Ordering::Relaxed)) else { return false };
    region.hand.store(index.wrapping_add(1), Ordering::Relaxed);
    let Some(chunk) = region.tables.chunk(index) else { return false };
    if !chunk.own() {
        // Somebody is changing it: look again.
        return true;
    }
    let recalled = match chunk.state.is_lent() {
        true => recall(region, &chunk, true).is_ok(),
        false => {
            // A discard that failed half-way has left the mark.
            unmark(region, index);
            true
        }
    };
    chunk.state.release();
    recalled
}

/// The first lent chunk at or after `from`, or else before it.
fn next_lent(region: &Region, from: usize) -> Option<usize> {
    next_lent_from(region, from).or_else(|| next_lent_from(region, 0))
}

/// The first lent chunk at or after `from`.
pub(crate) fn next_lent_from(region: &Region, from: usize) -> Option<usize> {
    let words = region.tables.lent_chunks();
    let mut chunk = from;
    // Lent chunks have pages, by their bits: only those need looking at.
    loop {
        chunk = region.tables.summary().next(chunk)?;
        let word = words.get(chunk / 64)?.load(Ordering::Relaxed);
        if word & 1 << (chunk % 64) != 0 {
            return Some(chunk);
        }
        chunk = chunk.wrapping_add(1);
    }
}

/// Brings the bits and counters of a chunk in line with the kernel's view, as its owner.
pub(crate) fn reconcile(
    region: &Region,
    chunk: &Chunk<'_>,
    pagemap: &Pagemap,
) -> Result<(), Errno> {
    pagemap.visit(region, chunk.index, &mut |pages, page| match page {
        _ if pages.is_empty() => {}
        Page::Absent if region.backend == Backend::Mprotect && !chunk.state.is_lent() => {
            correct_absent(region, chunk, pagemap, pages);
        }
        _ => correct(region, chunk, pages, page),
    })
}

/// Records that `pages` of a chunk are what `page` says.
fn correct(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>, page: Page) {
    let ledger = &region.ledger;
    match page {
        Page::Memory => {
            let new = chunk.resident.set(pages.clone());
            let lent = chunk.lent().map_or(0, |lent| lent.clear(pages));
            ledger.convert(lent as u64);
            // Installed behind our back.
            ledger.adopt(new.saturating_sub(lent) as u64);
        }
        // The kernel may replace memory that holds zeroes by its zero page.
        Page::Common => lend_resident(region, chunk, pages),
        // Not there yet, or dropped behind our back: the kernel fills it again, so it stays charged.
        Page::Absent if chunk.state.is_lent() => lend_resident(region, chunk, pages),
        // Dropped behind our back, as madvise(2) on the range would.
        Page::Absent => {
            ledger.release(chunk.resident.clear(pages.clone()) as u64, 0);
            ledger.release(0, chunk.lent().map_or(0, |lent| lent.clear(pages)) as u64);
        }
    }
}

/// Has those of `pages` of a chunk that are resident be lent, as its owner: no other is charged for.
pub(crate) fn lend_resident(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>) {
    let mut resident = Snapshot::EMPTY;
    resident.insert(pages);
    let resident = resident.and(&chunk.resident.load());
    if !resident.is_empty() {
        chunk.lend().add(&resident);
        region.ledger.revert(chunk.resident.remove(&resident) as u64);
    }
}

/// The same for absent pages of a chunk that is not lent, where they are accessible: they are absent only once
/// that has been taken back.
fn correct_absent(region: &Region, chunk: &Chunk<'_>, pagemap: &Pagemap, pages: Range<usize>) {
    let first = region.pages_of(chunk.index).start;
    for page in pages {
        let is_missing = || {
            let page = first.wrapping_add(page);
            protect::close_if_missing(region, chunk, pagemap, page) == Ok(true)
        };
        if chunk.is_present(page) && is_missing() {
            release_page(region, chunk, page);
        }
    }
}

/// Takes a page that is not there out of the bits and the counters.
fn release_page(region: &Region, chunk: &Chunk<'_>, page: usize) {
    let lent = chunk.lent().is_some_and(|lent| lent.clear_one(page));
    let resident = chunk.resident.clear_one(page);
    region.ledger.release(u64::from(resident), u64::from(lent));
}

/// Takes those of `pages` of a chunk, all of them out of reach, that the kernel has dropped out of the bits
/// and the counters. If it does not tell, they stay there.
pub(crate) fn release_dropped(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>) {
    let Ok(pagemap) = Pagemap::open() else { return };
    let first = region.pages_of(chunk.index).start;
    for page in pages.filter(|page| chunk.is_present(*page)) {
        if pagemap.is_missing(region, first.wrapping_add(page)) == Ok(true) {
            release_page(region, chunk, page);
        }
    }
}

/// Has the kernel fill the chunk's missing pages by itself; tells of how many of its first pages that is
/// true now.
fn unregister(region: &Region, index: usize) -> usize {
    let (start, len) = span(region, index);
    let pages = region.pages_of(index);
    let count = pages.len();
    let done = match region.backend {
        Backend::Userfaultfd => uffd_of(region).is_ok_and(|uffd| {
            // SAFETY: the kernel fills the chunk as the template says, and its owner has charged all of it.
            unsafe { uffd.unregister(start, len) }.is_ok()
        }),
        Backend::Mprotect => protect::open(region, pages.clone()).is_ok(),
    };
    if done {
        return count;
    }
    // Most likely there are no more mappings to be had.
    MAPPINGS.stop();
    match region.backend {
        Backend::Userfaultfd => 0,
        Backend::Mprotect => protect::count_opened(region, pages).min(count.saturating_sub(1)),
    }
}

/// Has the chunk's missing pages fault again.
fn register(region: &Region, index: usize) -> Result<(), Errno> {
    let (start, len) = span(region, index);
    // As the rest of the region: mappings merge only if they are registered alike.
    let mode = match region.pages_of(index).start < region.source.shared_pages() {
        true => RegisterMode::MISSING | RegisterMode::MINOR,
        false if region.track.is_registered() => RegisterMode::MISSING | RegisterMode::WP,
        false => RegisterMode::MISSING,
    };
    // SAFETY: the chunk is part of a reservation of ours.
    match unsafe { uffd_of(region)?.register(start, len, mode) } {
        Ok(_) => Ok(()),
        Err(error) => Err(error.errno().unwrap_or(Errno::UnknownErrno)),
    }
}

fn span(region: &Region, index: usize) -> (*mut u8, usize) {
    let pages = region.pages_of(index);
    let start = ptr::with_exposed_provenance_mut(region.address_of(pages.start));
    (start, pages.len().wrapping_shl(region.page_shift))
}
