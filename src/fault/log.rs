//! The order of first touches, while somebody wants it recorded.
//!
//! Its slots are memory that `Arena::start_recording` has mapped and filled beforehand. A fault takes
//! the next slot and writes its page there: no lock, and nothing that can fail. When the slots are used
//! up, recording ends by itself.
//!
//! | fault, [`Log::record`] | whoever ends it, [`Log::close`] |
//! |---|---|
//! | 1. become a writer; was the log open? | 1. close it |
//! | 2. take a slot and write it | 2. wait until there are no writers |
//! | 3. leave | 3. read the slots, reuse their memory |
//!
//! Steps 1 are read-modify-writes of the same word, so one comes first: either the fault finds the log
//! closed, or it is waited for. So whoever reads the slots finds each of them written.

use super::decode::Access;
use crate::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::ptr;

/// First touches are recorded, or were until the slots were used up.
const OPEN: u32 = 1 << 31;
/// The slots are used up.
const FULL: u32 = 1 << 30;
/// The faults that look at the slots, or are about to find out that they must not.
const WRITERS: u32 = FULL - 1;

/// What a slot says about a page: its number, and whether it was written in this bit.
const WRITE: u64 = 1;

/// Part of a region, so that it is there for as long as the region is pinned.
pub(crate) struct Log {
    /// [`OPEN`], [`FULL`] and the number of [`WRITERS`].
    state: AtomicU32,
    /// The slot to take next; past the capacity once they are used up.
    next: AtomicUsize,
    capacity: AtomicUsize,
    slots: AtomicPtr<AtomicU64>,
}

/// How a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Closed {
    /// So many slots, from the first on, are written.
    pub(crate) written: usize,
    /// Whether there was a slot for each touch.
    pub(crate) complete: bool,
}

impl Log {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether first touches are recorded.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        // Relaxed: advice; `record` looks again. Lending, which must not miss it, has a fence.
        self.state.load(Ordering::Relaxed) & (OPEN | FULL) == OPEN
    }

    /// Whether it was opened and not yet closed.
    pub(crate) fn is_in_use(&self) -> bool {
        // Relaxed: changed under the lock that the caller holds, or the arena is the caller's alone.
        self.state.load(Ordering::Relaxed) & OPEN != 0
    }

    /// Takes note that `page` was touched for the first time.
    #[cold]
    #[inline(never)]
    pub(crate) fn record(&self, page: usize, access: Access) {
        // Acquire pairs with the Release in `open`: the slots, and how many they are, are visible.
        if self.state.fetch_add(1, Ordering::Acquire) & (OPEN | FULL) == OPEN {
            self.write((page as u64) << 1 | if access == Access::Write { WRITE } else { 0 });
        }
        // Release pairs with the Acquire in `close`: the slot is written.
        self.state.fetch_sub(1, Ordering::Release);
    }

    /// Writes the next slot, as a writer of a log that was open.
    fn write(&self, entry: u64) {
        // Relaxed, all of these: the state has handed them over, and they do not change while there are
        // writers, except for `next`, of which each writer gets another value.
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        if slot < self.capacity.load(Ordering::Relaxed) {
            let slot = self.slots.load(Ordering::Relaxed).wrapping_add(slot);
            // SAFETY: `open` was given so many slots, which stay until `close` has seen this writer leave.
            unsafe { (*slot).store(entry, Ordering::Relaxed) };
        } else {
            self.state.fetch_or(FULL, Ordering::Relaxed);
        }
    }

    /// Begins to record into `capacity` slots at `slots`.
    ///
    /// # Safety
    /// The slots are memory that is there and stays until [`close`](Self::close), or a fork in the
    /// child; the log is closed, and nobody else opens it meanwhile.
    pub(crate) unsafe fn open(&self, slots: *mut AtomicU64, capacity: usize) {
        // Relaxed: nobody looks at them before the state says so.
        self.next.store(0, Ordering::Relaxed);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.slots.store(slots, Ordering::Relaxed);
        // Release pairs with the Acquire in `record`.
        self.state.fetch_or(OPEN, Ordering::Release);
    }

    /// Ends the recording; afterwards no fault looks at the slots any more. `None` if there is none.
    /// Nobody else opens or closes the log meanwhile. `pause` is what to do while a fault is at it.
    pub(crate) fn close(&self, mut pause: impl FnMut()) -> Option<Closed> {
        if self.state.fetch_and(!OPEN, Ordering::Relaxed) & OPEN == 0 {
            return None;
        }
        // Acquire pairs with the Release in `record`.
        while self.state.load(Ordering::Acquire) & WRITERS != 0 {
            pause();
        }
        // Whoever becomes a writer now finds the log closed, and does not set it again.
        self.state.fetch_and(!FULL, Ordering::Relaxed);
        let taken = self.next.load(Ordering::Relaxed);
        let capacity = self.capacity.load(Ordering::Relaxed);
        Some(Closed { written: taken.min(capacity), complete: taken <= capacity })
    }

    /// Ends it in a forked child, where the writers are gone and the slots are the parent's.
    pub(crate) fn forget(&self) {
        // Relaxed: no other thread is left.
        self.state.store(0, Ordering::Relaxed);
    }
}

/// The page of a slot's entry, and how it was touched.
pub(crate) fn decode(entry: u64) -> (usize, Access) {
    let access = if entry & WRITE != 0 { Access::Write } else { Access::Read };
    ((entry >> 1) as usize, access)
}
