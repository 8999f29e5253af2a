//! Changing chunks from outside the handler: as one of their fillers, or as their owner.

use super::Arena;
use crate::fault::REGISTRY;
use crate::fault::region::Region;
use crate::fault::registry::{Lookup, Pinned};
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::fork::current_thread;
use crate::sys::pause;

impl Arena {
    /// Holds on to the region, as a fault does: a fork in another thread waits for it, and is
    /// waited for.
    pub(super) fn pin(&self) -> Pinned<'_, Region> {
        loop {
            if let Lookup::Found(region) = REGISTRY.pin(self.base.as_ptr().addr(), current_thread) {
                return region;
            }
            pause(10_000);
        }
    }

    /// Runs `change` as a filler of chunk `index`, with signals blocked: a handler on top of it that
    /// faults would wait for a fork of another thread's, which waits for this one.
    pub(super) fn as_filler<R>(
        &self,
        index: usize,
        change: impl FnOnce(&Region, &Chunk<'_>) -> R,
    ) -> Option<R> {
        self.inside(index, Region::enter, Region::leave, change)
    }

    /// Runs `change` as the owner of chunk `index`: nobody else changes which of its pages are
    /// present meanwhile.
    ///
    /// `_masked` shows that no signal handler can interrupt this thread: one that touches the
    /// chunk would wait for its own thread.
    pub(super) fn as_owner<R>(
        &self,
        _masked: &SignalsBlocked,
        index: usize,
        change: impl FnOnce(&Region, &Chunk<'_>) -> R,
    ) -> Option<R> {
        let begin = |_: &Region, chunk: &Chunk<'_>| chunk.own();
        let end = |_: &Region, chunk: &Chunk<'_>| chunk.state.release();
        self.inside(index, begin, end, change)
    }

    /// Runs `change` between `begin`, tried until it succeeds, and `end`; `None` if there is no such
    /// chunk.
    fn inside<R>(
        &self,
        index: usize,
        begin: fn(&Region, &Chunk<'_>) -> bool,
        end: fn(&Region, &Chunk<'_>),
        change: impl FnOnce(&Region, &Chunk<'_>) -> R,
    ) -> Option<R> {
        loop {
            let region = self.pin();
            let chunk = region.tables.chunk(index)?;
            if begin(&region, &chunk) {
                let result = change(&region, &chunk);
                end(&region, &chunk);
                return Some(result);
            }
            drop(region);
            pause(10_000);
        }
    }
}
