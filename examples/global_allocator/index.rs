//! Words and how often they occur, in a map that asks for memory before it takes it.

use std::cmp::Reverse;
use std::collections::HashMap;

/// There is no memory for more.
pub(crate) struct Full;

/// Counts by word.
#[derive(Default)]
pub(crate) struct Index {
    counts: HashMap<String, u64>,
    total: u64,
}

impl Index {
    /// The words of these strings.
    pub(crate) fn of(strings: &[String]) -> Result<Self, Full> {
        let mut index = Self::default();
        for word in strings.iter().flat_map(|string| string.split_whitespace()) {
            index.count(word, 1)?;
        }
        Ok(index)
    }

    /// Adds the counts of other indices. If there is no memory for all of their words, none is
    /// counted.
    pub(crate) fn add(&mut self, others: &[Self]) -> Result<(), Full> {
        let words = || others.iter().flat_map(|other| &other.counts);
        for (word, _) in words() {
            self.count(word, 0)?;
        }
        for (word, count) in words() {
            *self.counts.get_mut(word).expect("counted above") += count;
            self.total += count;
        }
        Ok(())
    }

    /// Counts a word `times` more.
    fn count(&mut self, word: &str, times: u64) -> Result<(), Full> {
        self.total += times;
        if let Some(count) = self.counts.get_mut(word) {
            *count += times;
            return Ok(());
        }
        // An allocation that fails without being asked for ends the program; this only says no.
        self.counts.try_reserve(1).map_err(|_| Full)?;
        let mut owned = String::new();
        owned.try_reserve_exact(word.len()).map_err(|_| Full)?;
        owned.push_str(word);
        self.counts.insert(owned, times);
        Ok(())
    }

    /// Words that were counted at all.
    pub(crate) fn distinct(&self) -> usize {
        self.counts.values().filter(|&&count| count > 0).count()
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The most frequent words, most frequent first.
    pub(crate) fn most_frequent(&self, most: usize) -> Vec<(&str, u64)> {
        let mut words: Vec<_> = self.counts.iter().map(|(word, &count)| (&**word, count)).collect();
        words.sort_unstable_by_key(|&(word, count)| (Reverse(count), word));
        words.truncate(most);
        words
    }
}
