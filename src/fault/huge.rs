//! Filling a whole chunk with a huge page: made in a staging slot, moved into place by UFFDIO_MOVE
//! (since Linux 6.8), which costs the clearing of 2 MiB and little else.
//!
//! The kernel moves a huge page whole only where no page table is in the way, and the fault that
//! brought us here has just put an empty one there. MADV_DONTNEED frees it (since Linux 6.14), but
//! would also free a page that somebody had put there meanwhile; so all this is done by the owner
//! of a chunk without any page. Before 6.14 the kernel splits the page and moves its parts.

use super::ledger::Charge;
use super::region::Region;
use super::source::{Content, Source};
use super::staging::Slot;
use super::tables::Chunk;
use super::{STAGING, uffd};
use crate::atomic::Ordering;
use crate::page::CHUNK;
use crate::uffd::MoveMode;
use core::ptr;
use nix::errno::Errno;

/// How often the kernel may stop half-way before the rest is left to other means.
const ATTEMPTS: u32 = 8;

/// Fills a chunk, which has no pages and lies within the limit, as its owner. True if all of it is
/// present now; if not, what is present is recorded all the same.
pub(crate) fn fill_chunk(region: &Region, chunk: &Chunk<'_>) -> bool {
    let pages = region.chunk_pages();
    let promised = match region.ledger.charge(pages as u64, region.budget) {
        Charge::Promised(promised) => promised,
        Charge::Pending | Charge::Exhausted => return false,
    };
    let done = match promised == pages as u64 {
        true => STAGING.claim().map_or(0, |slot| fill_from(region, chunk, slot)),
        false => 0,
    };
    if done > 0 {
        region.tables.summary().set(chunk.index);
        chunk.resident.set(0..done);
    }
    region.ledger.settle(promised, done as u64, 0);
    done == pages
}

/// Makes the chunk's content in `slot` and moves it into place; tells how many pages arrived.
fn fill_from(region: &Region, chunk: &Chunk<'_>, slot: Slot<'_>) -> usize {
    let first = region.pages_of(chunk.index).start;
    let pages = match slot.populate() {
        true => {
            write_content(region, first, slot.start());
            move_into_place(region, first, slot.start())
        }
        false => 0,
    };
    if pages < region.chunk_pages() {
        slot.discard();
    }
    pages
}

/// Moves a slot's page to the pages from `first` on.
fn move_into_place(region: &Region, first: usize, slot: *mut u8) -> usize {
    let target: *mut u8 = ptr::with_exposed_provenance_mut(region.address_of(first));
    // SAFETY: the chunk has no pages that could be lost, and nobody else may install any.
    unsafe { libc::madvise(target.cast(), CHUNK, libc::MADV_DONTNEED) };
    let mut moved = 0usize;
    for _ in 0..ATTEMPTS {
        let (to, from) = (target.wrapping_add(moved), slot.wrapping_add(moved));
        let rest = CHUNK.wrapping_sub(moved);
        // SAFETY: the target is the chunk, whose absent pages promise this content; the slot is the
        // caller's.
        let progress = unsafe { uffd().move_pages(to, from, rest, MoveMode::DONTWAKE) };
        moved = moved.wrapping_add(progress.bytes());
        match progress.errno() {
            Some(Errno::EAGAIN) => {}
            Some(Errno::EINVAL) => {
                // These two mappings will not do, ever: one is locked in memory, say. Relaxed: a
                // fault that does not know yet finds out by itself.
                region.huge.store(0, Ordering::Relaxed);
                break;
            }
            _ => break,
        }
    }
    moved >> region.page_shift
}

/// Writes the template's content for the pages from `first` on into a slot that holds zeroes.
fn write_content(region: &Region, first: usize, slot: *mut u8) {
    let pages = region.chunk_pages();
    let mut page = 0usize;
    while page < pages {
        let target = slot.wrapping_add(page.wrapping_shl(region.page_shift));
        let left = pages.wrapping_sub(page);
        let at = first.wrapping_add(page);
        let done = match region.source.at(at, region.page_shift) {
            Content::Zero => return,
            Content::Bytes { from, pages } => {
                let count = pages.min(left).max(1);
                let bytes = count.wrapping_shl(region.page_shift);
                // SAFETY: the template's memory is so long, and the slot has room for it.
                unsafe { ptr::copy_nonoverlapping(from, target, bytes) };
                count
            }
            Content::Generated => {
                let Source::Generate { function, .. } = region.source else { return };
                let size = 1usize.wrapping_shl(region.page_shift);
                // SAFETY: a page of the slot, which is the caller's.
                function(at as u64, unsafe { &mut *ptr::slice_from_raw_parts_mut(target, size) });
                1
            }
        };
        page = page.wrapping_add(done);
    }
}
