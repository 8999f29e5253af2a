//! Where runs of present pages are mappings, a process has room for so many. When the kernel has none
//! left, the gaps between the runs of some chunk are filled, so that they become one.

use super::fill::add;
use super::ledger::Charge;
use super::region::Region;
use super::tables::Chunk;
use super::want::Want;
use crate::atomic::Ordering;
use core::ops::Range;
use nix::errno::Errno;

/// Makes room for mappings; false if there is none to be made, or the budget does not allow it.
#[cold]
#[inline(never)]
pub(crate) fn merge_any(region: &Region) -> bool {
    let hand = region.hand.load(Ordering::Relaxed);
    merge_one_of(region, hand..usize::MAX) || merge_one_of(region, 0..hand)
}

/// Makes one run of the runs of one of these chunks, or finds that somebody else does.
fn merge_one_of(region: &Region, chunks: Range<usize>) -> bool {
    let mut from = chunks.start;
    while let Some(index) = next_divided(region, from).filter(|index| *index < chunks.end) {
        from = index.wrapping_add(1);
        region.hand.store(from, Ordering::Relaxed);
        let Some(chunk) = region.tables.chunk(index) else { return false };
        // If it has an owner, or has been made one meanwhile, it is worth looking again.
        if !chunk.own() {
            return true;
        }
        let merged = merge(region, &chunk);
        chunk.state.release();
        if merged {
            return true;
        }
    }
    false
}

/// Fills the gaps of a chunk, as its owner; false if not even the first could be filled.
fn merge(region: &Region, chunk: &Chunk<'_>) -> bool {
    if chunk.state.is_poisoned() {
        return false;
    }
    let Some(mut gap) = first_gap(region, chunk) else { return true };
    let mut merged = false;
    while fill_gap(region, chunk, gap) {
        merged = true;
        match first_gap(region, chunk) {
            Some(next) => gap = next,
            None => break,
        }
    }
    merged
}

/// The first chunk at or after `from` with more than one run of present pages.
fn next_divided(region: &Region, from: usize) -> Option<usize> {
    let mut index = from;
    loop {
        index = region.tables.summary().next(index)?;
        let chunk = region.tables.chunk(index)?;
        // The gaps of one with poisoned pages may not be filled.
        let may_be_filled = !chunk.state.is_lent() && !chunk.state.is_poisoned();
        if may_be_filled && first_gap(region, &chunk).is_some() {
            return Some(index);
        }
        index = index.wrapping_add(1);
    }
}

/// The first gap between two runs of present pages within the limit.
fn first_gap(region: &Region, chunk: &Chunk<'_>) -> Option<Range<usize>> {
    let pages = region.pages_of(chunk.index);
    let end = pages.end.min(region.limit()).saturating_sub(pages.start);
    let present = chunk.present();
    let gap = present.next_clear(present.next_set(0..end)..end);
    let next = present.next_set(gap..end);
    (next < end).then_some(gap..next)
}

/// Fills a gap, as the chunk's owner. That begins no mapping: two become one.
fn fill_gap(region: &Region, chunk: &Chunk<'_>, gap: Range<usize>) -> bool {
    let wanted = gap.len() as u64;
    match region.ledger.charge(wanted, region.budget) {
        Charge::Promised(promised) if promised == wanted => {
            // All buffers of a page function may be in use.
            matches!(add(region, chunk, gap, Want::Memory).stopped_by, None | Some(Errno::EBUSY))
        }
        Charge::Promised(promised) => {
            region.ledger.settle(promised, 0, 0);
            false
        }
        Charge::Pending | Charge::Exhausted => false,
    }
}
