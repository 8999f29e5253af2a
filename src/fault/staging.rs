//! Where huge pages are made: 2 MiB slots of memory that huge pages are allowed in. A slot is
//! filled, and then its page is moved into an arena whole, which leaves the slot empty.

use super::tuning::STAGING_SLOTS;
use crate::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::page::CHUNK;
use crate::sys;
use core::ptr;

/// The slots of the process.
pub(crate) struct Staging {
    pub(crate) base: AtomicPtr<u8>,
    /// A bit for each slot that is in use.
    claimed: AtomicU64,
}

/// A slot in use.
pub(crate) struct Slot<'a> {
    owner: &'a Staging,
    number: u32,
}

impl Staging {
    pub(crate) const fn new() -> Self {
        Self { base: AtomicPtr::new(ptr::null_mut()), claimed: AtomicU64::new(0) }
    }

    /// A slot, empty, unless all are in use.
    pub(crate) fn claim(&self) -> Option<Slot<'_>> {
        loop {
            let number = (!self.claimed.load(Ordering::Relaxed)).trailing_zeros();
            if number as usize >= STAGING_SLOTS {
                return None;
            }
            let bit = 1 << number;
            // Acquire pairs with the Release in `drop`: the slot's last user has emptied it.
            if self.claimed.fetch_or(bit, Ordering::Acquire) & bit == 0 {
                return Some(Slot { owner: self, number });
            }
        }
    }
}

impl Slot<'_> {
    /// Its first byte, aligned to 2 MiB.
    pub(crate) fn start(&self) -> *mut u8 {
        let offset = CHUNK.wrapping_mul(self.number as usize);
        // Relaxed: stored before the first region is published, and published with it.
        self.owner.base.load(Ordering::Relaxed).wrapping_add(offset)
    }

    /// Fills the slot with zeroed memory, a huge page if the kernel has one to give.
    pub(crate) fn populate(&self) -> bool {
        // SAFETY: the slot is this claim's, and empty.
        unsafe { sys::advise(self.start(), CHUNK, libc::MADV_POPULATE_WRITE).is_ok() }
    }
}

impl Drop for Slot<'_> {
    /// Empties the slot, so that no arena's bytes reach another, and frees the page table that is
    /// left when its page was moved in parts (since Linux 6.14): a huge page could not come in its
    /// place. A slot that cannot be emptied is never used again.
    fn drop(&mut self) {
        // SAFETY: the slot is this claim's.
        let empty = || unsafe { sys::advise(self.start(), CHUNK, libc::MADV_DONTNEED) }.is_ok();
        // Locked in memory, with all that there was when the program called mlockall(2).
        // SAFETY: as above.
        let unlock = || unsafe { sys::unlock(self.start(), CHUNK) }.is_ok();
        if empty() || (unlock() && empty()) {
            // Release pairs with the Acquire in `claim`.
            self.owner.claimed.fetch_and(!(1 << self.number), Ordering::Release);
        }
    }
}
