//! The table: a counter for every sequence there is.

use crate::Result;
use crate::counters::{Counters, Usage};
use crate::sequence::Sequence;
use indicatif::{HumanBytes, HumanCount};
use lacuna::ErrorKind;

/// A counter for every sequence there is.
pub(crate) struct Table {
    counters: Counters,
    /// The sum of all counters.
    total: u64,
}

impl Table {
    /// All counters at zero.
    pub(crate) fn new(counters: Counters) -> Self {
        Self { counters, total: 0 }
    }

    /// Counts every sequence of `bytes`.
    ///
    /// A touch over the budget would end the process. A sequence takes at most one more page, so
    /// as many as there is room for are counted without looking, however many pages they share;
    /// once the budget is full, each page is asked for.
    pub(crate) fn count(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(first) = Sequence::all(bytes).next() {
            let sequences = match self.counters.room() {
                0 => self.ask_for(first)?,
                room => room.min(bytes.len() - (Sequence::LEN - 1)),
            };
            self.touch(&bytes[..sequences + (Sequence::LEN - 1)])?;
            bytes = &bytes[sequences..];
        }
        Ok(())
    }

    /// Makes the counter of one sequence present, if the budget allows.
    fn ask_for(&self, sequence: Sequence) -> Result<usize> {
        let Counters::Sparse(counters) = &self.counters else { return Ok(1) };
        let index = sequence.index();
        match counters.populate(index..index + 1) {
            Ok(()) => Ok(1),
            Err(error) if error.kind() == ErrorKind::BudgetExhausted => {
                let budget = counters.arena().stats().budget_bytes.unwrap_or(usize::MAX);
                Err(self.over_budget(budget).into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn over_budget(&self, budget: usize) -> String {
        format!(
            "the counters need more than the budget of {}, which was full after {} sequences; \
             give a larger --budget",
            HumanBytes(budget as u64),
            HumanCount(self.total)
        )
    }

    /// Counts without regard to the budget: here, and nowhere else, memory comes into being.
    fn touch(&mut self, bytes: &[u8]) -> Result<()> {
        let counters = &mut self.counters[..];
        for sequence in Sequence::all(bytes) {
            let counter = &mut counters[sequence.index()];
            *counter = counter.wrapping_add(1);
            if *counter == 0 {
                return Err(format!("{sequence} occurs more often than 32 bits can count").into());
            }
            self.total += 1;
        }
        Ok(())
    }

    /// The sequences that occur, in order, each with its count. Everything else lies on pages that
    /// nobody touched, or is zero on one that somebody did.
    pub(crate) fn occurring(&self) -> Result<impl Iterator<Item = (Sequence, u32)>> {
        let present = self.counters.populated()?.flatten();
        Ok(present
            .map(|index| (Sequence::from_index(index), self.counters[index]))
            .filter(|(_, count)| *count > 0))
    }

    /// How many sequences were counted.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// What the counters take, as the kernel knows it.
    pub(crate) fn measure(&self) -> Result<Usage> {
        self.counters.measure()
    }
}
