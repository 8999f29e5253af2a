//! What a heap tells about itself.

use super::core::Core;
use super::{cache::Cache, class};
use crate::arena::Bytes;
use crate::atomic::Ordering;
use crate::fault::ledger::UNBOUNDED;
use crate::page::CHUNK;
use core::fmt;

/// A heap in numbers, from [`Heap::stats`](crate::Heap::stats) and
/// [`Lacuna::stats`](crate::Lacuna::stats).
///
/// Each number is exact; taken together they show one moment only while no thread allocates or frees.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HeapStats {
    /// Address space of the heap.
    pub reserved_bytes: usize,
    /// The most bytes that may be resident and lent together; `None` without a budget.
    pub budget_bytes: Option<usize>,
    /// Memory of spans of small blocks, present as far as blocks were carved from them.
    pub resident_bytes: usize,
    /// Memory that larger blocks may take when they are touched, and that some of those freed in the
    /// last half second may still take.
    pub lent_bytes: usize,
    /// Address space of freed blocks that are kept out of use, so that touching them is noticed
    /// ([`Lacuna::poison_freed`](crate::Lacuna::poison_freed)).
    pub poisoned_bytes: usize,
    /// The most that `resident_bytes` has been.
    pub peak_resident_bytes: usize,
    /// Bytes of the blocks in use, as rounded up to their class or to whole pages.
    pub live_bytes: usize,
    /// Blocks in use.
    pub live_blocks: usize,
    /// Blocks in use that have a class.
    classes: [usize; class::COUNT],
    /// Blocks in use that have none, and their bytes.
    large: (usize, usize),
}

/// The blocks in use of one size class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClassStats {
    /// Bytes of a block of the class.
    pub block_bytes: usize,
    /// Blocks in use.
    pub live_blocks: usize,
}

impl HeapStats {
    /// Of a heap that could not be made.
    pub(crate) const NONE: Self = Self {
        reserved_bytes: 0,
        budget_bytes: None,
        resident_bytes: 0,
        lent_bytes: 0,
        poisoned_bytes: 0,
        peak_resident_bytes: 0,
        live_bytes: 0,
        live_blocks: 0,
        classes: [0; class::COUNT],
        large: (0, 0),
    };

    /// Bytes that may still be used before the budget is full; `None` without a budget.
    #[must_use]
    pub fn budget_left(&self) -> Option<usize> {
        let charged = self.resident_bytes + self.lent_bytes;
        self.budget_bytes.map(|budget| budget.saturating_sub(charged))
    }

    /// The size classes, smallest first. Blocks larger than the largest class have none.
    pub fn classes(&self) -> impl Iterator<Item = ClassStats> + '_ {
        let stats =
            |(class, &live_blocks)| ClassStats { block_bytes: class::size(class), live_blocks };
        self.classes.iter().enumerate().map(stats)
    }

    /// Blocks in use that are larger than the largest class, and their bytes.
    #[must_use]
    pub fn large(&self) -> (usize, usize) {
        self.large
    }
}

impl Core {
    /// The numbers now.
    pub(crate) fn stats(&self) -> HeapStats {
        let bytes = |pages: u64| (pages as usize) << self.pages.shift;
        let balance = self.pages.ledger().balance();
        // Frees first: each follows its allocation, so there are never more. Acquire pairs with the
        // Release that counts them.
        let freed = self.large.freed.load(Ordering::Acquire);
        let large_blocks = self.large.allocated.load(Ordering::Relaxed).saturating_sub(freed);
        let mut stats = HeapStats {
            reserved_bytes: self.table.chunks * CHUNK,
            budget_bytes: (self.pages.budget != UNBOUNDED).then(|| bytes(self.pages.budget)),
            resident_bytes: bytes(balance.resident),
            lent_bytes: bytes(balance.lent),
            poisoned_bytes: 0,
            peak_resident_bytes: bytes(balance.peak),
            live_bytes: 0,
            live_blocks: 0,
            classes: [0; class::COUNT],
            large: (large_blocks as usize, self.large_bytes.load(Ordering::Relaxed) as usize),
        };
        self.count_classes(&mut stats);
        let small = stats.classes().map(|it| (it.live_blocks, it.live_blocks * it.block_bytes));
        let (blocks, bytes) = small.fold(stats.large, |sum, it| (sum.0 + it.0, sum.1 + it.1));
        (stats.live_blocks, stats.live_bytes) = (blocks, bytes);
        stats
    }

    fn count_classes(&self, stats: &mut HeapStats) {
        let common = self.common.lock();
        let shared = self.shared.lock();
        stats.poisoned_bytes = shared.quarantined_bytes;
        for (class, live) in stats.classes.iter_mut().enumerate() {
            let caches = shared.taken.iter().chain(shared.idle.iter());
            let count = |cache: &Cache| cache.counts(class);
            let all = caches.map(count).chain([count(&common.0)]);
            let (allocated, freed) = all.fold((0, 0), |sum: (u64, u64), it| {
                (sum.0.wrapping_add(it.0), sum.1.wrapping_add(it.1))
            });
            // Frees that were seen without their allocations, which another thread counts just now.
            *live = (allocated.wrapping_sub(freed) as i64).max(0) as usize;
        }
    }

    /// Gives back what no block uses.
    pub(crate) fn purge(&self) {
        self.common.lock().0.release_empty();
        self.give_unused();
    }
}

impl fmt::Display for HeapStats {
    /// One line; with `{:#}`, one more for each size class in use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (live, resident) = (Bytes(self.live_bytes), Bytes(self.resident_bytes));
        write!(f, "{} blocks of {live} live, {resident} resident", self.live_blocks)?;
        if self.lent_bytes > 0 {
            write!(f, ", {} lent", Bytes(self.lent_bytes))?;
        }
        if self.poisoned_bytes > 0 {
            write!(f, ", {} poisoned", Bytes(self.poisoned_bytes))?;
        }
        write!(f, " of {} reserved", Bytes(self.reserved_bytes))?;
        if let Some(budget) = self.budget_bytes {
            write!(f, ", budget {}", Bytes(budget))?;
        }
        write!(f, ", peak {}", Bytes(self.peak_resident_bytes))?;
        if f.alternate() {
            for class in self.classes().filter(|class| class.live_blocks > 0) {
                write!(f, "\n{:>12} of {}", class.live_blocks, Bytes(class.block_bytes))?;
            }
            if self.large.0 > 0 {
                write!(f, "\n{:>12} larger, {}", self.large.0, Bytes(self.large.1))?;
            }
        }
        Ok(())
    }
}
