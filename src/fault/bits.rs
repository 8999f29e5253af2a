//! Which pages of a chunk are present: 512 bits, one cache line.

use crate::atomic::{AtomicU64, Ordering};
use core::ops::Range;

const WORDS: usize = 8;

/// Pages of a chunk at most: 2 MiB of the smallest page, 4 KiB.
pub(crate) const BITS: usize = WORDS * 64;

/// One bit a page, shared between fillers. All zeroes is "nothing present".
#[repr(C, align(64))]
pub(crate) struct PageBits([AtomicU64; WORDS]);

/// What [`PageBits`] held when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot([u64; WORDS]);

impl PageBits {
    pub(crate) fn load(&self) -> Snapshot {
        let mut words = [0; WORDS];
        for (word, bits) in words.iter_mut().zip(&self.0) {
            // Acquire pairs with the Release in `set`: a page seen present is present.
            *word = bits.load(Ordering::Acquire);
        }
        Snapshot(words)
    }

    /// Whether page `index` is set.
    pub(crate) fn get(&self, index: usize) -> bool {
        (self.word(index / 64) >> (index % 64)) & 1 == 1
    }

    /// The bits of pages `64 * index` to `64 * index + 63`.
    pub(crate) fn word(&self, index: usize) -> u64 {
        // Acquire as in `load`.
        self.0.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Sets `pages`, and tells how many of them were clear. Of several callers, one counts each.
    pub(crate) fn set(&self, pages: Range<usize>) -> usize {
        let mut count = 0usize;
        for (word, bits) in self.0.iter().enumerate() {
            let mask = mask(word, &pages);
            if mask != 0 {
                // Release pairs with the Acquire in `load`.
                let new = mask & !bits.fetch_or(mask, Ordering::Release);
                count = count.wrapping_add(new.count_ones() as usize);
            }
        }
        count
    }

    /// Sets those of `bits`, of pages `64 * index` to `64 * index + 63`, that lie before page `end`.
    pub(crate) fn set_in_word(&self, index: usize, bits: u64, end: usize) {
        if let Some(word) = self.0.get(index) {
            // Release as in `set`.
            word.fetch_or(bits & mask(index, &(0..end)), Ordering::Release);
        }
    }

    /// Clears page `index`, and tells whether it was set.
    pub(crate) fn clear_one(&self, index: usize) -> bool {
        let bit = 1 << (index % 64);
        // Relaxed as in `clear`.
        self.0
            .get(index / 64)
            .is_some_and(|bits| bits.fetch_and(!bit, Ordering::Relaxed) & bit != 0)
    }

    /// Clears `pages`, and tells how many of them were set. Of several callers, one counts each.
    pub(crate) fn clear(&self, pages: Range<usize>) -> usize {
        let mut count = 0usize;
        for (word, bits) in self.0.iter().enumerate() {
            let mask = mask(word, &pages);
            if mask != 0 {
                // Relaxed: whoever must see pages gone is ordered by the claim of their chunk.
                let old = mask & bits.fetch_and(!mask, Ordering::Relaxed);
                count = count.wrapping_add(old.count_ones() as usize);
            }
        }
        count
    }
}

/// Changes by a set of pages, for whoever keeps bits in step by owning their chunk.
impl PageBits {
    /// Sets the pages of `set`.
    pub(crate) fn add(&self, set: &Snapshot) {
        // Most words of most sets are empty, and each locked instruction costs.
        for (bits, word) in self.0.iter().zip(set.0).filter(|(_, word)| *word != 0) {
            // Release as in `set`.
            bits.fetch_or(word, Ordering::Release);
        }
    }

    /// Clears the pages of `set`, and tells how many of them were set.
    pub(crate) fn remove(&self, set: &Snapshot) -> usize {
        let mut count = 0usize;
        for (bits, word) in self.0.iter().zip(set.0).filter(|(_, word)| *word != 0) {
            // Relaxed as in `clear`.
            let old = word & bits.fetch_and(!word, Ordering::Relaxed);
            count = count.wrapping_add(old.count_ones() as usize);
        }
        count
    }

    /// Has exactly the pages of `set` set.
    pub(crate) fn assign(&self, set: &Snapshot) {
        for (bits, word) in self.0.iter().zip(set.0) {
            // Release as in `set`.
            bits.store(word, Ordering::Release);
        }
    }
}

/// The bits of `word` that `pages` covers.
fn mask(word: usize, pages: &Range<usize>) -> u64 {
    let base = word.wrapping_mul(64);
    let from = pages.start.saturating_sub(base).min(64);
    let to = pages.end.saturating_sub(base).min(64);
    low(to) & !low(from)
}

/// The lowest `count` bits, `count <= 64`.
fn low(count: usize) -> u64 {
    1u64.checked_shl(count as u32).map_or(u64::MAX, |bit| bit.wrapping_sub(1))
}

impl Snapshot {
    pub(crate) const EMPTY: Self = Self([0; WORDS]);

    /// Whether page `index` is set.
    pub(crate) fn get(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    /// Adds `pages`.
    pub(crate) fn insert(&mut self, pages: Range<usize>) {
        for (index, word) in self.0.iter_mut().enumerate() {
            *word |= mask(index, &pages);
        }
    }

    /// Those before page `end`.
    pub(crate) fn before(mut self, end: usize) -> Self {
        for (index, word) in self.0.iter_mut().enumerate() {
            *word &= mask(index, &(0..end));
        }
        self
    }

    /// The pages set in either.
    pub(crate) fn union(mut self, other: &Self) -> Self {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
        self
    }

    /// The pages set in both.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word &= more;
        }
        self
    }

    /// The pages set here and not there.
    pub(crate) fn minus(mut self, other: &Self) -> Self {
        for (word, less) in self.0.iter_mut().zip(&other.0) {
            *word &= !less;
        }
        self
    }

    /// The runs of set pages, in order.
    pub(crate) fn runs(self) -> impl Iterator<Item = Range<usize>> {
        let mut from = 0;
        core::iter::from_fn(move || {
            let start = self.next_set(from..BITS);
            from = self.next_clear(start..BITS);
            (start < BITS).then_some(start..from)
        })
    }

    /// The first set page of `pages`, or its end.
    pub(crate) fn next_set(&self, pages: Range<usize>) -> usize {
        self.find(pages, 0)
    }

    /// The first clear page of `pages`, or its end.
    pub(crate) fn next_clear(&self, pages: Range<usize>) -> usize {
        self.find(pages, u64::MAX)
    }

    /// The first page of `pages` whose bit differs from those of `flip`.
    fn find(&self, pages: Range<usize>, flip: u64) -> usize {
        for (index, word) in self.0.iter().enumerate().skip(pages.start / 64) {
            let hit = (word ^ flip) & mask(index, &pages);
            if hit != 0 {
                return index.wrapping_mul(64).wrapping_add(hit.trailing_zeros() as usize);
            }
        }
        pages.end
    }

    /// Where the run of set pages that ends just before `index` begins; `index` if there is none.
    pub(crate) fn run_before(&self, index: usize) -> usize {
        self.find_back(index, u64::MAX)
    }

    /// Where the run of clear pages that ends just before `index` begins.
    pub(crate) fn gap_before(&self, index: usize) -> usize {
        self.find_back(index, 0)
    }

    /// One past the last page below `index` whose bit differs from those of `flip`.
    fn find_back(&self, index: usize, flip: u64) -> usize {
        for (number, word) in self.0.iter().enumerate().rev() {
            let hit = (word ^ flip) & mask(number, &(0..index));
            if hit != 0 {
                let top = 64usize.wrapping_sub(hit.leading_zeros() as usize);
                return number.wrapping_mul(64).wrapping_add(top);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(bits: &[bool]) -> PageBits {
        let page_bits = PageBits(Default::default());
        for (index, _) in bits.iter().enumerate().filter(|(_, bit)| **bit) {
            page_bits.set(index..index + 1);
        }
        page_bits
    }

    proptest! {
        #[test]
        fn agrees_with_a_vector(
            bits in proptest::collection::vec(any::<bool>(), BITS),
            a in 0..=BITS,
            b in 0..=BITS,
            clear: bool,
        ) {
            let (start, end) = (a.min(b), a.max(b));
            let page_bits = model(&bits);
            let mut bits = bits;
            if clear {
                page_bits.clear(start..end);
            } else {
                page_bits.set(start..end);
            }
            bits[start..end].fill(!clear);
            let snapshot = page_bits.load();

            for (index, bit) in bits.iter().enumerate() {
                prop_assert_eq!(snapshot.get(index), *bit);
            }
            let first = |want| bits[start..end].iter().position(|b| *b == want);
            prop_assert_eq!(snapshot.next_set(start..end), first(true).map_or(end, |i| start + i));
            prop_assert_eq!(
                snapshot.next_clear(start..end),
                first(false).map_or(end, |i| start + i)
            );
            let last = |want| bits[..end].iter().rposition(|b| *b == want).map_or(0, |i| i + 1);
            prop_assert_eq!(snapshot.run_before(end), last(false));
            prop_assert_eq!(snapshot.gap_before(end), last(true));
            prop_assert_eq!(snapshot.is_empty(), bits.iter().all(|b| !b));
        }
    }

    #[test]
    fn union_has_both() {
        let (a, b) = (model(&[true, false, true]), model(&[false, true, true]));
        let mut both = a.load().union(&b.load());
        assert_eq!(both, model(&[true; 3]).load());
        assert_eq!(Snapshot::EMPTY.union(&both), both);
        both.insert(2..70);
        assert_eq!(both, model(&[true; 70]).load());
    }

    #[test]
    fn each_page_is_counted_once() {
        let bits = model(&[true, false, true]);
        assert_eq!(bits.set(0..100), 98);
        assert_eq!(bits.set(50..101), 1);
        assert_eq!(bits.clear(1..3), 2);
        assert_eq!(bits.clear(0..4), 2);
    }
}
