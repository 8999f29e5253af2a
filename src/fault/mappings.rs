//! Mappings that lending makes: a lent chunk in the midst of others that are not splits a mapping in three.
//! The kernel has a limit on mappings, shared with the whole process, so lending stops at a share of it.

use super::region::Region;
use crate::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The mappings that lending has made, and how many it may make. Runs of lent chunks are counted
/// within words of 64, so the count is never below the truth.
pub(crate) struct Mappings {
    used: AtomicUsize,
    most: AtomicUsize,
}

/// Of the process.
pub(crate) static MAPPINGS: Mappings =
    Mappings { used: AtomicUsize::new(0), most: AtomicUsize::new(0) };

/// A run of lent chunks splits one mapping into three.
const PER_RUN: usize = 2;

impl Mappings {
    /// Marks a chunk as lent, if the mappings that takes are to be had. Beside a lent chunk it
    /// takes none, between two it saves some.
    pub(super) fn reserve(&self, region: &Region, chunk: usize) -> bool {
        self.reserve_in(&region.mappings, region.tables.lent_chunks(), chunk)
    }

    /// Marks a chunk as not lent.
    pub(super) fn release(&self, region: &Region, chunk: usize) {
        self.release_in(&region.mappings, region.tables.lent_chunks(), chunk);
    }

    /// Takes a region's share out of the count: its arena is going, or has nothing lent in a forked child.
    pub(crate) fn forget(&self, region: &Region) {
        // Relaxed: as in `adjust`.
        let share = region.mappings.swap(0, Ordering::Relaxed);
        self.used.fetch_sub(share, Ordering::Relaxed);
    }

    /// No more than `most` from here on.
    pub(crate) fn allow(&self, most: usize) {
        // Relaxed: a bound that is guessed at.
        self.most.store(most, Ordering::Relaxed);
    }

    /// No more than there are now.
    #[inline(always)]
    pub(super) fn stop(&self) {
        self.allow(self.used.load(Ordering::Relaxed));
    }

    fn reserve_in(&self, share: &AtomicUsize, words: &[AtomicU64], chunk: usize) -> bool {
        let Some(word) = words.get(chunk / 64) else { return false };
        let bit = 1 << (chunk % 64);
        let now = word.load(Ordering::Relaxed);
        let is_run = runs(now | bit) > runs(now);
        if is_run && self.used.load(Ordering::Relaxed) >= self.most.load(Ordering::Relaxed) {
            return false;
        }
        // Relaxed: a count, and bits that only help to find chunks.
        let before = word.fetch_or(bit, Ordering::Relaxed);
        self.adjust(share, before, before | bit);
        true
    }

    fn release_in(&self, share: &AtomicUsize, words: &[AtomicU64], chunk: usize) {
        let Some(word) = words.get(chunk / 64) else { return };
        let bit = 1 << (chunk % 64);
        let before = word.fetch_and(!bit, Ordering::Relaxed);
        self.adjust(share, before, before & !bit);
    }

    fn adjust(&self, share: &AtomicUsize, before: u64, after: u64) {
        let (before, after) = (runs(before), runs(after));
        let change = PER_RUN.wrapping_mul(after.wrapping_sub(before));
        share.fetch_add(change, Ordering::Relaxed);
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
        let mappings = Mappings { used: AtomicUsize::new(7), most: AtomicUsize::new(11) };
        let words = [AtomicU64::new(0), AtomicU64::new(0)];
        let share = AtomicUsize::new(0);
        let used = || {
            let share = share.load(Ordering::Relaxed);
            assert_eq!(mappings.used.load(Ordering::Relaxed), 7 + share);
            share
        };
        let reserve = |chunk| mappings.reserve_in(&share, &words, chunk);
        assert!(reserve(3));
        assert!(reserve(5));
        assert_eq!(used(), 4);
        assert!(!reserve(64), "full");
        assert!(reserve(4), "joins two runs");
        assert_eq!(used(), 2);
        assert!(reserve(64));
        mappings.release_in(&share, &words, 4);
        assert_eq!(used(), 6);
        for chunk in [3, 5, 64] {
            mappings.release_in(&share, &words, chunk);
        }
        assert_eq!(used(), 0);
    }
}
