//! Lending: a chunk of zeroes that keeps faulting here and there is unregistered, so that the kernel
//! fills it by itself, and charged as a whole; and recalling: it is registered again, and charged
//! for what it has become.
//!
//! A lent chunk in the midst of others that are not splits a mapping in three. The kernel has a
//! limit on mappings, shared with the whole process, so lending stops at a share of it.

use super::bits::Snapshot;
use super::ledger::Charge;
use super::pagemap::{Pagemap, View};
use super::region::Region;
use super::tables::Chunk;
use super::uffd;
use crate::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::uffd::RegisterMode;
use core::ptr;
use nix::errno::Errno;

/// Faults with no present page beside them before a chunk is lent: the second one says that the
/// first was no stream's beginning.
pub(crate) const LONELY_FAULTS: u32 = 2;

/// The mappings that lending has made, and how many it may make. Runs of lent chunks are counted
/// within words of 64, so the count is never below the truth.
pub(crate) struct Mappings {
    used: AtomicUsize,
    pub(crate) most: AtomicUsize,
}

/// Of the process.
pub(crate) static MAPPINGS: Mappings =
    Mappings { used: AtomicUsize::new(0), most: AtomicUsize::new(0) };

/// A run of lent chunks splits one mapping into three.
const PER_RUN: usize = 2;

/// Lends a chunk of zeroes as its owner, if the budget and the mappings have room.
#[inline(never)]
pub(crate) fn lend(region: &Region, chunk: &Chunk<'_>) -> bool {
    let pages = region.pages_of(chunk.index);
    let mut absent = Snapshot::EMPTY;
    absent.insert(0..pages.len());
    let absent = absent.without(&chunk.present());
    let count = absent.count(0..pages.len()) as u64;
    let fits = pages.end <= region.limit()
        && chunk.state.may_be_lent()
        && region.ledger.is_roomy(count, region.budget)
        && MAPPINGS.reserve(region.tables.lent_chunks(), chunk.index);
    if !fits {
        return false;
    }
    let promised = match region.ledger.charge(count, region.budget) {
        Charge::Promised(promised) => promised,
        Charge::Pending | Charge::Exhausted => 0,
    };
    let lent = promised == count && unregister(region, chunk.index);
    if lent {
        region.tables.summary().set(chunk.index);
        chunk.lend().add(&absent);
        chunk.state.set_lent();
    } else {
        MAPPINGS.release(region.tables.lent_chunks(), chunk.index);
    }
    region.ledger.settle(promised, 0, if lent { count } else { 0 });
    lent
}

/// Takes a lent chunk back as its owner: from here on its missing pages fault again, and only what
/// is there is charged. `keep` it from being lent again?
pub(crate) fn recall(region: &Region, chunk: &Chunk<'_>, keep: bool) -> Result<(), Errno> {
    register(region, chunk.index)?;
    MAPPINGS.release(region.tables.lent_chunks(), chunk.index);
    chunk.state.set_recalled(keep);
    // Should this fail, missing pages stay charged, and are installed without another charge.
    let view = Pagemap::open()?.view(region, chunk.index)?;
    reconcile(region, chunk, &view);
    Ok(())
}

/// Takes back the next lent chunk of a region, whose budget is full, from the handler of a fault
/// elsewhere. False if there is none.
#[inline(never)]
pub(crate) fn recall_any(region: &Region) -> bool {
    let Some(index) = next_lent(region, region.hand.load(Ordering::Relaxed)) else { return false };
    region.hand.store(index, Ordering::Relaxed);
    let Some(chunk) = region.tables.chunk(index) else { return false };
    if !chunk.state.claim() {
        // Somebody is changing it: look again.
        return true;
    }
    while !chunk.state.is_quiet() {
        super::resolve::pause(1_000);
    }
    let result = if chunk.state.is_lent() { recall(region, &chunk, true) } else { Ok(()) };
    chunk.state.release();
    result.is_ok()
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

/// Takes a region's lent chunks out of the count of mappings; its arena is going.
pub(crate) fn forget(region: &Region) {
    let mut from = 0;
    while let Some(index) = next_lent_from(region, from) {
        MAPPINGS.release(region.tables.lent_chunks(), index);
        from = index.wrapping_add(1);
    }
}

/// Brings the bits and counters of a chunk in line with the kernel's view, as its owner. Pages of a
/// chunk that is lent stay charged though they are not there yet.
pub(crate) fn reconcile(region: &Region, chunk: &Chunk<'_>, view: &View) {
    let resident = chunk.resident.load();
    let lent = chunk.lent().map_or(Snapshot::EMPTY, |lent| lent.load());
    let all = 0..super::bits::BITS;

    let become_memory = lent.and(&view.memory);
    if !become_memory.is_empty() {
        chunk.resident.add(&become_memory);
        region.ledger.convert(chunk.lend().remove(&become_memory));
    }
    // Installed or dropped behind our back, as madvise(2) on the range would.
    let strange = view.memory.without(&resident).without(&lent);
    if !strange.is_empty() {
        chunk.resident.add(&strange);
        region.ledger.adopt(strange.count(all.clone()) as u64);
    }
    let dropped = resident.without(&view.memory);
    if !dropped.is_empty() {
        region.ledger.release(chunk.resident.remove(&dropped), 0);
    }
    let missing = lent.without(&view.memory).without(&view.zero);
    if !missing.is_empty() && !chunk.state.is_lent() {
        region.ledger.release(0, chunk.lend().remove(&missing));
    }
}

fn unregister(region: &Region, index: usize) -> bool {
    let (start, len) = span(region, index);
    // SAFETY: the chunk is of zeroes, as the kernel fills it, and its owner has charged all of it.
    match unsafe { uffd().unregister(start, len) } {
        Ok(()) => true,
        Err(_) => {
            // Most likely there are no more mappings to be had.
            MAPPINGS.most.store(MAPPINGS.used.load(Ordering::Relaxed), Ordering::Relaxed);
            false
        }
    }
}

/// Has the chunk's missing pages fault again.
pub(crate) fn register(region: &Region, index: usize) -> Result<(), Errno> {
    let (start, len) = span(region, index);
    // SAFETY: the chunk is part of a reservation of ours.
    match unsafe { uffd().register(start, len, RegisterMode::MISSING) } {
        Ok(_) => Ok(()),
        Err(error) => Err(error.errno().unwrap_or(Errno::UnknownErrno)),
    }
}

fn span(region: &Region, index: usize) -> (*mut u8, usize) {
    let pages = region.pages_of(index);
    let start = ptr::with_exposed_provenance_mut(region.address_of(pages.start));
    (start, pages.len().wrapping_shl(region.page_shift))
}

impl Mappings {
    /// Marks a chunk as lent, if the mappings that takes are to be had. Beside a lent chunk it
    /// takes none, between two it saves some.
    fn reserve(&self, words: &[AtomicU64], chunk: usize) -> bool {
        let Some(word) = words.get(chunk / 64) else { return false };
        let bit = 1 << (chunk % 64);
        let now = word.load(Ordering::Relaxed);
        let is_run = runs(now | bit) > runs(now);
        if is_run && self.used.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed) {
            return false;
        }
        // Relaxed: a count, and bits that only help to find chunks.
        let before = word.fetch_or(bit, Ordering::Relaxed);
        self.adjust(before, before | bit);
        true
    }

    /// Marks a chunk as not lent.
    fn release(&self, words: &[AtomicU64], chunk: usize) {
        let Some(word) = words.get(chunk / 64) else { return };
        let bit = 1 << (chunk % 64);
        let before = word.fetch_and(!bit, Ordering::Relaxed);
        self.adjust(before, before & !bit);
    }

    fn adjust(&self, before: u64, after: u64) {
        let (before, after) = (runs(before), runs(after));
        let change = PER_RUN.wrapping_mul(after.wrapping_sub(before));
        self.used.fetch_add(change, Ordering::Relaxed);
    }
}

/// Runs of set bits.
fn runs(word: u64) -> usize {
    (word & !(word << 1)).count_ones() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_count_runs() {
        let mappings = Mappings { used: AtomicUsize::new(0), most: AtomicUsize::new(4) };
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        let used = || mappings.used.load(Ordering::Relaxed);
        assert!(mappings.reserve(&words, 3));
        assert!(mappings.reserve(&words, 5));
        assert_eq!(used(), 4);
        assert!(!mappings.reserve(&words, 64), "full");
        assert!(mappings.reserve(&words, 4), "joins two runs");
        assert_eq!(used(), 2);
        assert!(mappings.reserve(&words, 64));
        mappings.release(&words, 4);
        assert_eq!(used(), 6);
        for chunk in [3, 5, 64] {
            mappings.release(&words, chunk);
        }
        assert_eq!(used(), 0);
    }
}
