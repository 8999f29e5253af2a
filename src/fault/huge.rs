//! Filling a whole chunk with a huge page: made in a staging slot, moved into place by UFFDIO_MOVE
//! (since Linux 6.8), which costs the clearing of 2 MiB and little else.
//!
//! The kernel moves a huge page whole only where no page table is in the way, and the fault that
//! brought us here has just put an empty one there. MADV_DONTNEED frees it (since Linux 6.14), but
//! would also free a page that somebody had put there meanwhile; so all this is done by the owner
//! of a chunk without any page. Before 6.14 the kernel splits the page and moves its parts.

use super::ledger::Charge;
use super::protect;
use super::region::{HUGE_ALLOWED, Region};
use super::staging::Slot;
use super::tables::Chunk;
use super::{STAGING, uffd_of};
use crate::atomic::Ordering;
use crate::page::CHUNK;
use crate::sys;
use crate::uffd::MoveMode;
use core::ptr;
use nix::errno::Errno;

/// Fills a chunk, which has no pages and lies within the limit, as its owner. True if all of it is
/// present now; if not, what is present is recorded all the same.
#[inline(never)]
pub(crate) fn fill_chunk(region: &Region, chunk: &Chunk<'_>) -> bool {
    let Some(pages) = promise(region) else { return false };
    let done = STAGING.claim().map_or(0, |slot| fill_from(region, chunk, &slot));
    settle(region, chunk, pages, done, 0)
}

/// The same where nothing is registered: the kernel makes huge pages in their place. What is lent comes
/// after what is resident.
#[inline(never)]
pub(crate) fn fill_chunk_in_place(region: &Region, chunk: &Chunk<'_>) -> bool {
    let Some(pages) = promise(region) else { return false };
    let (resident, lent) = protect::fill_chunk(region, chunk);
    if resident > 0 {
        chunk.resident.set(0..resident);
    }
    if lent > 0 {
        chunk.lend().set(resident..resident.wrapping_add(lent));
    }
    settle(region, chunk, pages, resident, lent)
}

/// A promise of a whole chunk's pages, or none.
fn promise(region: &Region) -> Option<u64> {
    let pages = region.chunk_pages() as u64;
    match region.ledger.charge(pages, region.budget) {
        Charge::Promised(promised) if promised == pages => Some(pages),
        Charge::Promised(promised) => {
            region.ledger.settle(promised, 0, 0);
            None
        }
        Charge::Pending | Charge::Exhausted => None,
    }
}

/// Redeems the promise; tells whether all of the chunk is present.
fn settle(region: &Region, chunk: &Chunk<'_>, pages: u64, resident: usize, lent: usize) -> bool {
    let done = resident.wrapping_add(lent);
    if done > 0 {
        region.tables.summary().set(chunk.index);
    }
    region.ledger.settle(pages, resident as u64, lent as u64);
    done as u64 == pages
}

/// Makes the chunk's content in `slot` and moves it into place; tells how many pages arrived.
fn fill_from(region: &Region, chunk: &Chunk<'_>, slot: &Slot<'_>) -> usize {
    let first = region.pages_of(chunk.index).start;
    if !slot.populate() {
        return 0;
    }
    // SAFETY: the slot is the caller's, a chunk long, and holds zeroes.
    unsafe { region.source.write(first, region.chunk_pages(), region.page_shift, slot.start()) };
    match move_into_place(region, first, slot.start()) {
        Ok(()) => chunk.resident.set(0..region.chunk_pages()),
        Err(errno) => {
            if errno == Errno::EINVAL {
                // These two mappings will not do, ever: one is locked in memory, say. Relaxed: a
                // fault that does not know yet finds out by itself.
                region.huge.fetch_and(!HUGE_ALLOWED, Ordering::Relaxed);
            }
            record_arrived(region, chunk)
        }
    }
}

/// Moves a slot's pages to the pages from `first` on. If it fails, some may have arrived, and other
/// threads may be using them.
fn move_into_place(region: &Region, first: usize, slot: *mut u8) -> Result<(), Errno> {
    let uffd = uffd_of(region)?;
    let target: *mut u8 = ptr::with_exposed_provenance_mut(region.address_of(first));
    // Should it fail, the page arrives in parts.
    // SAFETY: the chunk has no pages that could be lost, and nobody else may install any.
    let _ = unsafe { sys::advise(target, CHUNK, libc::MADV_DONTNEED) };
    // SAFETY: the target is the chunk, whose absent pages promise this content; the slot is the
    // caller's.
    let progress = unsafe { uffd.move_pages(target, slot, CHUNK, MoveMode::DONTWAKE) };
    match progress.errno() {
        None => Ok(()),
        Some(errno) => Err(errno),
    }
}

/// Records which pages of the chunk are there, and counts them. The kernel's own count cannot be
/// relied on here: when page faults of other threads make it start over in the midst of a batch, it
/// meets the pages that it has moved itself, and says EEXIST and none (seen on Linux 6.18).
#[cold]
fn record_arrived(region: &Region, chunk: &Chunk<'_>) -> usize {
    let pages = region.pages_of(chunk.index);
    let mut count = 0usize;
    for page in 0..pages.len() {
        let address = region.address_of(pages.start.wrapping_add(page));
        let address = ptr::with_exposed_provenance_mut(address);
        // SAFETY: the page is one of a reservation of ours.
        if unsafe { sys::resident(address) } == Ok(true) {
            count = count.wrapping_add(chunk.resident.set(page..page.wrapping_add(1)));
        }
    }
    count
}
