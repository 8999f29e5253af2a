//! Making heaps.

use super::Heap;
use super::setup::{Site, found};
use crate::arena::Arena;
use crate::error::Result;

/// What a heap is to be; made by [`Heap::builder`], it makes the heap with [`build`](Self::build).
#[derive(Debug)]
#[must_use = "nothing is made before `build`"]
pub struct HeapBuilder {
    arena: Arena,
    poison_freed: bool,
}

impl HeapBuilder {
    pub(super) const fn new(arena: Arena) -> Self {
        Self { arena, poison_freed: false }
    }

    /// Whether touching a large block after it was freed is a violation, see
    /// [`Lacuna::poison_freed`](crate::Lacuna::poison_freed); not so by default.
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30).name("session").reserve()?;
    /// let heap = lacuna::Heap::builder(arena).poison_freed(true).build()?;
    /// # drop(heap);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub const fn poison_freed(mut self, poison: bool) -> Self {
        self.poison_freed = poison;
        self
    }

    /// Makes the heap.
    ///
    /// # Errors
    /// As for [`Heap::new`].
    pub fn build(self) -> Result<Heap> {
        let given = self.arena.hand_over()?;
        let site = Site {
            base: given.base,
            len: given.len,
            budget: given.budget,
            page_shift: given.page_shift,
            ledger: Some(given.ledger),
            name: given.name,
            poisons: self.poison_freed,
        };
        // SAFETY: the arena has just been handed over, and outlives the core, as a field after it.
        let (core, tables) = unsafe { found(&site, false)? };
        Ok(Heap { core, _tables: tables, arena: self.arena })
    }
}
