//! The same count with a hash map.

use crate::Result;
use crate::sequence::Sequence;
use crate::table::Table;
use std::collections::HashMap;

/// Counts by sequence, in the standard library's map.
#[derive(Default)]
pub(crate) struct Rival(HashMap<Sequence, u32>);

impl Rival {
    /// Counts every sequence of `bytes`. The table has found that no counter overflows.
    pub(crate) fn count(&mut self, bytes: &[u8]) {
        for sequence in Sequence::all(bytes) {
            *self.0.entry(sequence).or_default() += 1;
        }
    }

    /// How many sequences it has.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The memory it takes, from how the map is built: eight buckets for each seven entries of its
    /// capacity, each with a control byte.
    pub(crate) fn bytes(&self) -> usize {
        let bucket = size_of::<(Sequence, u32)>() + 1;
        self.0.capacity().div_ceil(7) * 8 * bucket
    }

    /// Compares every count, in both directions: what the table has must be in the map, and then
    /// nothing may be left in the map. Fails with the first difference.
    pub(crate) fn compare(mut self, table: &Table) -> Result<()> {
        for (sequence, count) in table.occurring()? {
            let expected = self.0.remove(&sequence).unwrap_or(0);
            if count != expected {
                return Err(difference(sequence, count, expected).into());
            }
        }
        match self.0.into_iter().next() {
            Some((sequence, expected)) => Err(difference(sequence, 0, expected).into()),
            None => Ok(()),
        }
    }
}

fn difference(sequence: Sequence, table: u32, map: u32) -> String {
    format!("{sequence} was counted {table} times in the table, {map} times in the hash map")
}
