//! Changing chunks from outside the handler: as one of their fillers, or as their owner.

use super::Arena;
use crate::fault::REGISTRY;
use crate::fault::handler::current_thread;
use crate::fault::region::Region;
use crate::fault::registry::{Lookup, Pinned};
use crate::fault::resolve::pause;
use crate::fault::tables::Chunk;
use core::mem::MaybeUninit;

impl Arena {
    /// Holds on to the region, as a fault does: a fork in another thread waits for it, and is
    /// waited for.
    fn pin(&self) -> Pinned<'_, Region> {
        loop {
            if let Lookup::Found(region) = REGISTRY.pin(self.base.as_ptr().addr(), current_thread) {
                return region;
            }
            pause(10_000);
        }
    }

    /// Runs `change` as a filler of chunk `index`.
    pub(super) fn as_filler<R>(
        &self,
        index: usize,
        change: impl FnOnce(&Region, &Chunk<'_>) -> R,
    ) -> Option<R> {
        loop {
            let region = self.pin();
            let chunk = region.tables.chunk(index)?;
            if chunk.state.enter() {
                let result = change(&region, &chunk);
                chunk.state.leave();
                return Some(result);
            }
            drop(region);
            pause(10_000);
        }
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
        loop {
            let region = self.pin();
            let chunk = region.tables.chunk(index)?;
            if chunk.state.claim() {
                while !chunk.state.is_quiet() {
                    pause(1_000);
                }
                let result = change(&region, &chunk);
                chunk.state.release();
                return Some(result);
            }
            drop(region);
            pause(10_000);
        }
    }
}

/// All signals are blocked in this thread for as long as this lives.
pub(super) struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    pub(super) fn new() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the sets are valid to write; pthread_sigmask cannot fail with a valid `how`, and
        // fills in the set before.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self(before.assume_init())
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set is the one that was in force.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, core::ptr::null_mut());
        }
    }
}
