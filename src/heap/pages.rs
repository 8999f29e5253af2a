//! Memory behind address space: charged before it can come into being, given back to the kernel and
//! the budget together.
//!
//! A heap's territory is handed to the kernel as a whole, which fills it by itself: a block works
//! for system calls before its first touch, and in threads that block SIGBUS. So what is *lent* here
//! is what a block may touch, and the budget holds because no block is handed out that is not
//! charged. Spans of small blocks are made present as they are carved, several pages a call, which
//! costs less than a page fault each; they count as resident.

use crate::Errno;
use crate::arena::Mapping;
use crate::fault::ledger::{Charge, Ledger};
use crate::sys;
use crate::sys::pause;
use core::ptr;
use nix::sys::mman::{MapFlags, ProtFlags};

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
            if !done {
                // It may have come half-way.
                drop_memory(address, pages << self.shift);
            }
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
                    if self.ledger().is_settled() {
                        return false;
                    }
                    pause(10_000);
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
    let start = at(address);
    // SAFETY: populating changes no content; the range is the heap's.
    match quietly(|| unsafe { sys::advise(start, len, libc::MADV_POPULATE_WRITE) }) {
        Ok(()) => return true,
        Err(Errno::EINVAL) => {}
        Err(_) => return false,
    }
    for offset in (0..len).step_by(page) {
        // SAFETY: the range is the heap's, and no block lies there yet.
        unsafe { start.add(offset).write_volatile(0) };
    }
    true
}

/// Gives the memory of a range of the heap's back to the kernel. It reads zeroes afterwards.
fn drop_memory(address: usize, len: usize) {
    // SAFETY: no block lies in the range.
    let result = quietly(|| unsafe { sys::advise(at(address), len, libc::MADV_DONTNEED) });
    if result.is_err() {
        // It is locked in memory: then it stays, but must not show what it held.
        // SAFETY: as above; the heap's memory is readable and writable.
        unsafe { at(address).write_bytes(0, len) };
    }
}

/// Has the kernel fill a range in huge pages where it has them. False if it never does.
pub(crate) fn prefer_huge(address: usize, len: usize) -> bool {
    // SAFETY: the advice changes no content; the range is the heap's.
    quietly(|| unsafe { sys::advise(at(address), len, libc::MADV_HUGEPAGE).is_ok() })
}

/// What makes memory inaccessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    /// Guard pages.
    Guard,
    /// The protection of a mapping of its own.
    Protection,
}

/// Drops the memory of a range of the heap's, and makes it inaccessible; `None` if that cannot be.
pub(crate) fn bar(address: usize, len: usize) -> Option<Barrier> {
    quietly(|| {
        // SAFETY: no block lies in the range.
        match unsafe { sys::advise(at(address), len, sys::MADV_GUARD_INSTALL) } {
            Ok(()) => return Some(Barrier::Guard),
            // Before Linux 6.13, or locked in memory.
            Err(Errno::EINVAL) => {}
            // Part of it may be barred.
            Err(_) => {
                unbar(address, len, Barrier::Guard);
                return None;
            }
        }
        // SAFETY: as above.
        let is_barred = unsafe { sys::protect(at(address), len, ProtFlags::PROT_NONE).is_ok() };
        // SAFETY: as above. Where it is locked in memory, it keeps it.
        let is_empty =
            is_barred && unsafe { sys::advise(at(address), len, libc::MADV_DONTNEED).is_ok() };
        if !is_empty {
            unbar(address, len, Barrier::Protection);
        }
        is_empty.then_some(Barrier::Protection)
    })
}

/// Makes a range that was barred accessible again: it reads zeroes. False if that cannot be.
pub(crate) fn unbar(address: usize, len: usize, barrier: Barrier) -> bool {
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: no block lies in the range, which is the heap's.
    let result = quietly(|| unsafe {
        match barrier {
            Barrier::Guard => sys::advise(at(address), len, sys::MADV_GUARD_REMOVE),
            Barrier::Protection => sys::protect(at(address), len, both),
        }
    });
    result.is_ok()
}

/// What became of memory that was to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// It is at the target, and the source is as if never used.
    There,
    /// It is at the target, but something else may lie at the source by now.
    SourceLost,
    /// It is where it was, and the target is as if never used.
    Not,
    /// It is where it was, but something else may lie at the target by now.
    TargetLost,
}

/// Moves the memory behind `len` bytes from `from` to the start of the `room` bytes at `to`, without
/// copying it: by mremap(2), which moves page tables where both are aligned to them, as chunks are.
/// What was behind the target is gone, and it is one mapping afterwards, so that it can be moved again.
pub(crate) fn move_memory(from: usize, len: usize, to: usize, room: usize) -> Moved {
    // SAFETY: both ranges are the heap's; no block lies at the target, and the one at the source is the
    // caller's, who goes on with the target.
    match quietly(|| unsafe { sys::remap(at(from), len, at(to), room) }) {
        Ok(_) if close_gap(from, len) => Moved::There,
        Ok(_) => Moved::SourceLost,
        Err(Errno::EFAULT) if looks_first() => Moved::Not,
        // The kernel may have unmapped the target before it found what was wrong.
        Err(_) if close_gap(to, room) => Moved::Not,
        Err(_) => Moved::TargetLost,
    }
}

/// Whether the kernel finds that the source is several mappings (EFAULT) before it unmaps the target: seen on
/// Linux 6.18.
fn looks_first() -> bool {
    sys::kernel_release().is_some_and(|release| release >= (6, 18))
}

/// Puts memory like the rest of the territory in the place of `len` bytes at `address`, whose own goes.
/// Should this fail, what was there before is still there.
pub(crate) fn renew(address: usize, len: usize) {
    // Made elsewhere: what is mapped with MAP_FIXED would be filled at once after mlockall(2), and what
    // was there could not be had back if making that accessible failed. The kernel looks whether it has
    // mappings enough before it unmaps anything, and nothing else is wrong with ranges of one length.
    quietly(|| {
        let Ok(fresh) = Mapping::zeroed(len) else { return };
        // SAFETY: no block lies in the range, which is the heap's; the other is nobody's.
        if unsafe { sys::remap(fresh.base().as_ptr(), len, at(address), len) }.is_ok() {
            core::mem::forget(fresh);
        }
    });
}

/// Maps memory like the rest of the territory where a moved block has left nothing; for a moment another
/// thread's mmap(2) may have got that: it is not mapped over.
fn close_gap(address: usize, len: usize) -> bool {
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: by the flags nothing is mapped over; what an old kernel, which takes the address for a
    // hint, maps elsewhere goes again.
    quietly(|| unsafe {
        let mapped = sys::map(at(address), len, ProtFlags::PROT_NONE, flags, None);
        let Ok(mapped) = mapped else { return false };
        // Unlocked before it is accessible: see `Mapping`.
        let _ = sys::unlock(mapped, len);
        let there = mapped == at(address) && sys::protect(mapped, len, both).is_ok();
        let _ = match there {
            true => sys::advise(mapped, len, libc::MADV_NOHUGEPAGE),
            false => sys::unmap(mapped, len),
        };
        there
    })
}

fn at(address: usize) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address)
}

/// Keeps errno: code that has just dropped something may be about to read it.
fn quietly<R>(call: impl FnOnce() -> R) -> R {
    let errno = Errno::last_raw();
    let result = call();
    Errno::set_raw(errno);
    result
}
