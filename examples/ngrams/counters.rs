//! Where the counters lie.

use crate::plain::Plain;
use crate::{Result, sequence::Sequence};
use lacuna::{SparseArray, Window, page_size};
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};

/// Counters for every sequence there is, at zero.
pub(crate) enum Counters {
    /// In an arena, as anybody would.
    Sparse(SparseArray<u32>),
    /// In a plain mapping, to compare.
    Plain(Plain),
}

/// What the counters take.
pub(crate) struct Usage {
    pub(crate) reserved: usize,
    pub(crate) resident: usize,
    /// Signals that the counting cost, if it may cost any.
    pub(crate) faults: Option<u64>,
}

impl Counters {
    /// In an arena that may take `budget` bytes of memory.
    pub(crate) fn sparse(budget: Option<usize>) -> lacuna::Result<Self> {
        let counters = SparseArray::zeroed_in(Sequence::COUNT, |arena| {
            let arena = arena.name("ngrams");
            match budget {
                // A fault takes one page, never more: `Table::count` relies on it.
                Some(bytes) => arena.budget(bytes).window(Window::Pages(1)),
                None => arena,
            }
        });
        Ok(Self::Sparse(counters?))
    }

    /// In a plain mapping.
    pub(crate) fn plain() -> std::io::Result<Self> {
        const COUNT: NonZeroUsize = NonZeroUsize::new(Sequence::COUNT).unwrap();
        Ok(Self::Plain(Plain::new(COUNT)?))
    }

    /// How many pages the budget has room for.
    pub(crate) fn room(&self) -> usize {
        match self.arena_budget_left() {
            Some(bytes) => bytes / page_size(),
            None => usize::MAX,
        }
    }

    fn arena_budget_left(&self) -> Option<usize> {
        match self {
            Self::Sparse(counters) => counters.arena().stats().budget_left(),
            Self::Plain(_) => None,
        }
    }

    /// The ranges of counters that are present, in order.
    pub(crate) fn populated(&self) -> Result<Box<dyn Iterator<Item = Range<usize>> + '_>> {
        Ok(match self {
            Self::Sparse(counters) => Box::new(counters.populated()),
            Self::Plain(counters) => Box::new(counters.populated()?.into_iter()),
        })
    }

    /// What they take, as the kernel knows it.
    pub(crate) fn measure(&self) -> Result<Usage> {
        Ok(match self {
            Self::Sparse(counters) => {
                let stats = counters.arena().measure()?;
                Usage {
                    reserved: stats.reserved_bytes,
                    resident: stats.resident_bytes,
                    faults: Some(stats.faults),
                }
            }
            Self::Plain(counters) => {
                let present: usize = counters.populated()?.iter().map(Range::len).sum();
                let reserved = size_of_val::<[u32]>(counters);
                Usage { reserved, resident: present * size_of::<u32>(), faults: None }
            }
        })
    }
}

impl Deref for Counters {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Self::Sparse(counters) => counters,
            Self::Plain(counters) => counters,
        }
    }
}

impl DerefMut for Counters {
    fn deref_mut(&mut self) -> &mut [u32] {
        match self {
            Self::Sparse(counters) => counters,
            Self::Plain(counters) => counters,
        }
    }
}
