//! Free blocks: lists that run through the blocks themselves, and the list that other threads push
//! to.

use crate::atomic::{AtomicPtr, Ordering};
use core::ptr;

/// A free block; its first word leads to the next.
#[repr(transparent)]
pub(crate) struct Block {
    pub(crate) next: AtomicPtr<Block>,
}

impl Block {
    /// The block after `block` in its list.
    ///
    /// # Safety
    /// `block` is free, and in a list of the caller's.
    #[inline]
    pub(crate) unsafe fn next(block: *mut Self) -> *mut Self {
        // Relaxed: whoever owns the list has got it by an Acquire, or made it.
        // SAFETY: as the caller promises.
        unsafe { (*block).next.load(Ordering::Relaxed) }
    }

    /// Has the processor fetch a block that is about to be handed out. Null is nothing.
    #[inline]
    pub(crate) fn prefetch(block: *const Self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a hint that accesses nothing as far as the program can tell, whatever the address.
        unsafe {
            core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(block.cast());
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        let _ = block;
    }

    /// Puts `block` before `next`.
    ///
    /// # Safety
    /// `block` is memory of a block that nobody uses, aligned to 8.
    #[inline]
    pub(crate) unsafe fn link(block: *mut Self, next: *mut Self) {
        // SAFETY: as the caller promises.
        unsafe { (*block).next.store(next, Ordering::Relaxed) };
    }
}

/// The blocks of a span that threads other than its owner have freed. Any thread pushes, the owner
/// takes all.
#[repr(transparent)]
pub(crate) struct Remote {
    pub(crate) head: AtomicPtr<Block>,
}

impl Remote {
    /// Adds a block.
    ///
    /// # Safety
    /// As for [`Block::link`]; and the block's span keeps its owner's count of it until the owner
    /// takes the list, so that it cannot go meanwhile.
    pub(crate) unsafe fn push(&self, block: *mut Block) {
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // SAFETY: as the caller promises.
            unsafe { Block::link(block, head) };
            // Release pairs with the Acquire in `take`: the owner sees the link, and whatever this
            // thread did with the block before it gave it up.
            match self.head.compare_exchange_weak(head, block, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(current) => head = current,
            }
        }
    }

    /// Whether there is anything to take. A hint.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed).is_null()
    }

    /// Takes the whole list, so a block that is pushed again meanwhile is no danger (no ABA).
    pub(crate) fn take(&self) -> *mut Block {
        if self.is_empty() {
            return ptr::null_mut();
        }
        // Acquire: see `push`. A push is a read-modify-write, so it continues the release sequence
        // of those before it.
        self.head.swap(ptr::null_mut(), Ordering::Acquire)
    }
}
