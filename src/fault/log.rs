//! The order of first touches, while somebody wants it recorded.
//!
//! Its slots are memory that `Arena::start_recording` has mapped and filled beforehand. A fault takes
//! the next slot and writes its page there: no lock, and nothing that can fail. When the slots are used
//! up, recording ends by itself.
//!
//! | fault, [`Log::record`] | whoever ends it, [`Log::close`] |
//! |---|---|
//! | 1. count itself among the writers | 1. close the log |
//! | 2. look whether the log is open | 2. wait until there are no writers |
//! | 3. take a slot, write it, leave | 3. read the slots, reuse their memory |
//!
//! Steps 1 and 2 are in one order for all threads, so either the fault finds the log closed, or it is
//! waited for: whoever reads the slots finds each of them written.

use super::decode::Access;
use crate::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::ptr;

/// Nothing is recorded.
const CLOSED: u32 = 0;
/// First touches are recorded.
const OPEN: u32 = 1;
/// They were, until the slots were used up.
const FULL: u32 = 2;

/// What a slot says about a page: its number, and whether it was written in this bit.
const WRITE: u64 = 1;

/// Part of a region, so that it is there for as long as the region is pinned.
pub(crate) struct Log {
    state: AtomicU32,
    /// Faults that look at the slots, or are about to find out that they must not.
    writers: AtomicU32,
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
    pub(crate) const fn new() -> Self {
        Self {
            state: AtomicU32::new(CLOSED),
            writers: AtomicU32::new(0),
            next: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            slots: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Whether first touches are recorded.
    #[inline(always)]
    pub(crate) fn is_open(&self) -> bool {
        // Relaxed: advice; `record` looks again. Lending, which must not miss it, has a fence.
        self.state.load(Ordering::Relaxed) == OPEN
    }

    /// Whether somebody has opened it and not yet closed.
    pub(crate) fn is_in_use(&self) -> bool {
        // Relaxed: changed under the lock that the caller holds, or by the log being used up.
        self.state.load(Ordering::Relaxed) != CLOSED
    }

    /// Takes note that `page` was touched for the first time.
    #[cold]
    #[inline(never)]
    pub(crate) fn record(&self, page: usize, access: Access) {
        // Sequentially consistent, as the load that follows and both steps of `close`: they are in one
        // order, of which this module's head speaks.
        self.writers.fetch_add(1, Ordering::SeqCst);
        // It also takes over, from the Release in `open`, the slots and how many they are.
        if self.state.load(Ordering::SeqCst) == OPEN {
            self.write((page as u64) << 1 | if access == Access::Write { WRITE } else { 0 });
        }
        // Release pairs with the load in `close`: the slot is written.
        self.writers.fetch_sub(1, Ordering::Release);
    }

    /// Writes the next slot, as a writer of an open log.
    fn write(&self, entry: u64) {
        // Relaxed, all of these: the state has handed them over, and they do not change while there are
        // writers, except for `next`, of which each writer gets another value.
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        if slot < self.capacity.load(Ordering::Relaxed) {
            let slot = self.slots.load(Ordering::Relaxed).wrapping_add(slot);
            // SAFETY: `open` was given so many slots, which stay until `close` has seen this writer leave.
            unsafe { (*slot).store(entry, Ordering::Relaxed) };
        } else {
            // Not over a closed log, which is about to wait for this writer.
            let _ = self.state.compare_exchange(OPEN, FULL, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Begins to record into `capacity` slots at `slots`.
    ///
    /// # Safety
    /// The slots are memory that is there and stays until [`close`](Self::close), or a fork in the
    /// child; and nobody else opens or closes the log meanwhile.
    pub(crate) unsafe fn open(&self, slots: *mut AtomicU64, capacity: usize) {
        self.next.store(0, Ordering::Relaxed);
        self.capacity.store(capacity, Ordering::Relaxed);
        self.slots.store(slots, Ordering::Relaxed);
        // SeqCst: Release pairs with the load in `record`; and the fence that the caller puts after it
        // orders it before what the caller looks at next.
        self.state.store(OPEN, Ordering::SeqCst);
    }

    /// Ends the recording; afterwards no fault looks at the slots any more. `None` if there is none.
    /// Nobody else opens or closes the log meanwhile. `pause` is what to do while a fault is at it.
    pub(crate) fn close(&self, mut pause: impl FnMut()) -> Option<Closed> {
        let before = self.state.swap(CLOSED, Ordering::SeqCst);
        // SeqCst as in `record`; Acquire pairs with the Release there.
        while self.writers.load(Ordering::SeqCst) != 0 {
            pause();
        }
        let taken = self.next.load(Ordering::Relaxed);
        let capacity = self.capacity.load(Ordering::Relaxed);
        let closed = Closed { written: taken.min(capacity), complete: taken <= capacity };
        (before != CLOSED).then_some(closed)
    }

    /// Ends it in a forked child, where the writers are gone and the slots are the parent's.
    pub(crate) fn forget(&self) {
        // Relaxed: no other thread is left.
        self.state.store(CLOSED, Ordering::Relaxed);
        self.writers.store(0, Ordering::Relaxed);
    }
}

/// The page of a slot's entry, and how it was touched.
pub(crate) fn decode(entry: u64) -> (usize, Access) {
    let access = if entry & WRITE != 0 { Access::Write } else { Access::Read };
    ((entry >> 1) as usize, access)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots<const N: usize>() -> [AtomicU64; N] {
        [const { AtomicU64::new(u64::MAX) }; N]
    }

    #[test]
    fn touches_are_recorded_in_their_order_until_the_log_is_full() {
        let (log, mut slots) = (Log::new(), slots::<2>());
        log.record(9, Access::Read);
        assert_eq!(log.close(|| {}), None);
        // SAFETY: the slots are there until the end of the test.
        unsafe { log.open(slots.as_mut_ptr(), 2) };
        assert!(log.is_open() && log.is_in_use());
        log.record(7, Access::Read);
        log.record(3, Access::Write);
        assert!(log.is_open());
        log.record(5, Access::Write);
        assert!(!log.is_open() && log.is_in_use());
        log.record(6, Access::Write);
        assert_eq!(log.close(|| {}), Some(Closed { written: 2, complete: false }));
        let decoded = slots.map(|slot| decode(slot.into_inner()));
        assert_eq!(decoded, [(7, Access::Read), (3, Access::Write)]);
    }

    #[test]
    fn closing_waits_for_the_writers() {
        let (log, mut slots) = (Log::new(), slots::<64>());
        let slots = slots.as_mut_ptr();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let log = &log;
                scope.spawn(move || {
                    (0..20_000).for_each(|_| log.record(thread + 1, Access::Write));
                });
            }
            for _ in 0..200 {
                // SAFETY: the slots are there until the end of the test, and opened here only.
                let closed = unsafe {
                    (0..64).for_each(|slot| (*slots.add(slot)).store(0, Ordering::Relaxed));
                    log.open(slots, 64);
                    std::thread::yield_now();
                    log.close(std::thread::yield_now).unwrap()
                };
                // SAFETY: as above; nobody writes to them now.
                let entry = |slot| unsafe { (*slots.add(slot)).load(Ordering::Relaxed) };
                assert!((0..closed.written).all(|slot| [1, 2].contains(&decode(entry(slot)).0)));
                assert!((closed.written..64).all(|slot| entry(slot) == 0));
            }
        });
    }
}
