//! Which chunks have pages: a bit a chunk, and above it a bit for each word that ever had one, so
//! that walking the chunks of a reservation costs in proportion to what is present.

use crate::atomic::{AtomicU64, Ordering};

/// Levels of bits; 64 words of the top one stand for 2^24 chunks, 32 TiB.
pub(crate) const LEVELS: usize = 3;

/// Words of each level, from the chunks' own bits up.
pub(crate) const fn words(chunks: usize) -> [usize; LEVELS] {
    let leaf = chunks.div_ceil(64);
    let middle = leaf.div_ceil(64);
    [leaf, middle, middle.div_ceil(64)]
}

/// The bits of one arena, in memory that the arena owns.
#[derive(Clone, Copy)]
pub(crate) struct Summary<'a> {
    pub(crate) levels: [&'a [AtomicU64]; LEVELS],
}

impl Summary<'_> {
    /// Records that `chunk` has pages.
    pub(crate) fn set(&self, chunk: usize) {
        // Acquire pairs with the Release below: a chunk's bit is set after those above it, so
        // whoever is ordered after a filler that found the bit set finds the whole path.
        let [leaf, middle, top] = self.levels;
        let is_set = leaf
            .get(chunk / 64)
            .is_some_and(|word| word.load(Ordering::Acquire) & 1 << (chunk % 64) != 0);
        if is_set {
            return;
        }
        for (words, index) in [(top, chunk >> 12), (middle, chunk >> 6), (leaf, chunk)] {
            if let Some(word) = words.get(index / 64) {
                word.fetch_or(1 << (index % 64), Ordering::Release);
            }
        }
    }

    /// Records that `chunk` has none left; its owner calls this. The levels above keep their bits,
    /// or a chunk that is being set beside it could be lost.
    pub(crate) fn clear(&self, chunk: usize) {
        let [leaf, ..] = self.levels;
        if let Some(word) = leaf.get(chunk / 64) {
            word.fetch_and(!(1 << (chunk % 64)), Ordering::Relaxed);
        }
    }

    /// The first chunk at or after `from` that has pages.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        self.search(0, from)
    }

    /// The first set bit at or after `from` on `level`.
    fn search(&self, level: usize, from: usize) -> Option<usize> {
        let words = self.levels.get(level)?;
        let word = from / 64;
        let rest = words.get(word)?.load(Ordering::Relaxed) & (u64::MAX << (from % 64));
        if rest != 0 {
            return Some(first_bit(word, rest));
        }
        let mut from = word.wrapping_add(1);
        loop {
            // On the top level word by word, below it by the level above.
            let word = match level {
                2 => from,
                _ => self.search(level.wrapping_add(1), from)?,
            };
            let bits = words.get(word)?.load(Ordering::Relaxed);
            if bits != 0 {
                return Some(first_bit(word, bits));
            }
            from = word.wrapping_add(1);
        }
    }
}

fn first_bit(word: usize, bits: u64) -> usize {
    word.wrapping_mul(64).wrapping_add(bits.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_set(
            chunks in 1usize..600_000,
            actions in proptest::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..200),
            from: prop::sample::Index,
        ) {
            let [a, b, c] = words(chunks).map(|words| {
                (0..words).map(|_| AtomicU64::new(0)).collect::<Vec<_>>()
            });
            let summary = Summary { levels: [&a, &b, &c] };
            let mut model = BTreeSet::new();
            for (index, set) in actions {
                let chunk = index.index(chunks);
                if set {
                    summary.set(chunk);
                    model.insert(chunk);
                } else {
                    summary.clear(chunk);
                    model.remove(&chunk);
                }
            }
            let from = from.index(chunks);
            let mut walked = Vec::new();
            let mut at = from;
            while let Some(chunk) = summary.next(at) {
                walked.push(chunk);
                at = chunk + 1;
            }
            prop_assert_eq!(walked, model.range(from..).copied().collect::<Vec<_>>());
        }
    }
}
