//! Memory behind address space: charged before it can come into being, given back to the kernel and
//! the budget together.
//!
//! A heap's territory is handed to the kernel as a whole, which fills it by itself: a block works
//! for system calls before its first touch, and in threads that block SIGBUS. So what is *lent* here
//! is what a block may touch, and the budget holds because no block is handed out that is not
//! charged. Spans of small blocks are made present as they are carved, several pages a call, which
//! costs less than a page fault each; they count as resident.

use crate::Errno;
use crate::fault::ledger::{Charge, Ledger};
use crate::fault::resolve::pause;
use core::ptr;

/// The books of a heap, and the system calls that change what is behind its territory.
pub(crate) struct Pages {
    ledger: *const Ledger,
    /// In pages.
    pub(crate) budget: u64,
    pub(crate) shift: u32,
}

impl Pages {
    /// # Safety
    /// The ledger outlives the value.
    pub(crate) unsafe fn new(ledger: *const Ledger, budget: u64, shift: u32) -> Self {
        Self { ledger, budget, shift }
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        // SAFETY: it outlives the value.
        unsafe { &*self.ledger }
    }

    /// Pages that hold `bytes` bytes.
    pub(crate) fn of(&self, bytes: usize) -> usize {
        (bytes >> self.shift) + usize::from(bytes & ((1 << self.shift) - 1) != 0)
    }

    /// Charges `pages` pages that the kernel may fill, or none.
    pub(crate) fn lend(&self, pages: usize) -> bool {
        self.charge(pages, |promised| self.ledger().settle(promised, 0, promised))
    }

    /// Charges `pages` pages at `address`, and makes them present; or neither.
    pub(crate) fn populate(&self, address: usize, pages: usize) -> bool {
        let mut done = false;
        self.charge(pages, |promised| {
            done = make_present(address, pages << self.shift, 1 << self.shift);
            self.ledger().settle(promised, if done { promised } else { 0 }, 0);
        });
        done
    }

    fn charge(&self, pages: usize, redeem: impl FnOnce(u64)) -> bool {
        let pages = pages as u64;
        if pages == 0 {
            return true;
        }
        loop {
            match self.ledger().charge(pages, self.budget) {
                Charge::Promised(promised) if promised == pages => {
                    redeem(promised);
                    return true;
                }
                Charge::Promised(promised) => {
                    self.ledger().settle(promised, 0, 0);
                    return false;
                }
                // Another thread is about to say whether it needs what it was promised.
                Charge::Pending => pause(10_000),
                Charge::Exhausted => return false,
            }
        }
    }

    /// Drops the memory of pages that were populated, and their charge.
    pub(crate) fn discard_populated(&self, address: usize, pages: usize) {
        if pages > 0 {
            drop_memory(address, pages << self.shift);
            self.ledger().release(pages as u64, 0);
        }
    }

    /// Drops the memory of pages that were lent, and their charge.
    pub(crate) fn discard_lent(&self, address: usize, pages: usize) {
        if pages > 0 {
            drop_memory(address, pages << self.shift);
            self.ledger().release(0, pages as u64);
        }
    }
}

/// Has the kernel fill a range, so that no touch of it faults, as madvise(2) MADV_POPULATE_WRITE does
/// since Linux 5.14. False if it has no memory.
fn make_present(address: usize, len: usize, page: usize) -> bool {
    let start = ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: populating changes no content; the range is the heap's.
    if unsafe { libc::madvise(start.cast(), len, libc::MADV_POPULATE_WRITE) } == 0 {
        return true;
    }
    if Errno::last() != Errno::EINVAL {
        return false;
    }
    for offset in (0..len).step_by(page) {
        // SAFETY: the range is the heap's, and no block lies there yet.
        unsafe { start.add(offset).write_volatile(0) };
    }
    true
}

/// Gives the memory of a range of the heap's back to the kernel. It reads zeroes afterwards.
fn drop_memory(address: usize, len: usize) {
    let start = ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: no block lies in the range.
    let result = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
    if result != 0 {
        // It is locked in memory: then it stays, but must not show what it held.
        // SAFETY: as above; the heap's memory is readable and writable.
        unsafe { start.write_bytes(0, len) };
    }
}

/// Moves the memory behind `len` bytes from `from` to `to`, without copying it; what was behind `to`
/// is gone, and `from` reads zeroes afterwards. Since Linux 5.7; false, and nothing changed, if it
/// cannot be.
pub(crate) fn move_memory(from: usize, to: usize, len: usize) -> bool {
    let at = ptr::with_exposed_provenance_mut::<libc::c_void>;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: both ranges are the heap's; no block lies at the target, and the one at the source is
    // the caller's, who goes on with the target.
    let result = unsafe { libc::mremap(at(from), len, len, flags, at(to)) };
    result != libc::MAP_FAILED
}

/// Puts a mapping like the rest of the territory over `len` bytes at `address`, whose memory goes.
pub(crate) fn renew(address: usize, len: usize) {
    let start = ptr::with_exposed_provenance_mut(address);
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is the heap's, and no block lies in it. Should this fail, what was there
    // before is still there.
    unsafe {
        if libc::mmap(start, len, protection, flags, -1, 0) != libc::MAP_FAILED {
            libc::madvise(start, len, libc::MADV_NOHUGEPAGE);
        }
    }
}
