//! Spans: runs of slices that hold blocks of one class, or one large block. What is known of them
//! lies here, away from the blocks, so that no overflow of a block reaches it.

use super::block::{Block, Remote};
use super::cache::Cache;
use super::list::{Linked, Links};
use crate::atomic::{AtomicPtr, Ordering};
use core::cell::Cell;
use core::ptr;
use core::sync::atomic::AtomicU8;

/// What a slice's entry says. Exact for whoever owns the span or holds the heap's lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// No span begins here. Zero, so that fresh memory says so.
    None = 0,
    /// Blocks of one class.
    Blocks,
    /// One block of up to a chunk, in a run of slices.
    Run,
    /// One block in whole chunks.
    Chunks,
    /// Empty, kept for the next one who needs a span like it.
    Kept,
}

/// What is known of one span: one cache line, at the entry of its first slice. The entries of its
/// other slices lead there. All zeroes is an entry of no span.
///
/// Fields in `Cell`s belong to the owner (the thread whose cache is named, or whoever holds the
/// heap's lock where there is none).
#[repr(C, align(64))]
pub(crate) struct Span {
    /// The cache that allocates from it; null for none.
    owner: AtomicPtr<Cache>,
    /// Blocks that the owner has freed.
    pub(crate) free: Cell<*mut Block>,
    /// How many they are.
    pub(crate) freed: Cell<u32>,
    /// The count at which the owner has more to do than to count.
    pub(crate) notify_at: Cell<u32>,
    /// Blocks that other threads have freed.
    pub(crate) remote: Remote,
    /// Bytes of a block of a class.
    pub(crate) size: Cell<u32>,
    /// Blocks that were handed out or lie in a list: those before this one are not fresh. Of a large
    /// block: the pages charged for it.
    pub(crate) carved: Cell<u32>,
    /// Pages from the start of the span that are present, and charged as such.
    pub(crate) populated: Cell<u16>,
    pub(crate) class: Cell<u8>,
    pub(crate) kind: Cell<Kind>,
    /// How many slices before this one its span begins.
    pub(crate) back: AtomicU8,
    /// Whether it lies in its bin's list of full spans.
    pub(crate) is_full: Cell<bool>,
    /// Whether blocks that were not carved yet hold zeroes: no span lay here since the kernel gave the
    /// memory.
    pub(crate) is_clean: Cell<bool>,
    pub(crate) links: Links<Span>,
}

const _: () = assert!(size_of::<Span>() == 64);

// SAFETY: see the type: cells are used by the owner alone.
unsafe impl Sync for Span {}

impl Linked for Span {
    fn links(&self) -> &Links<Self> {
        &self.links
    }
}

impl Span {
    /// The cache that allocates from it. A thread that finds its own there is the owner, since only
    /// the owner changes that; any other value only tells that it is not.
    #[inline]
    pub(crate) fn owner(&self) -> *const Cache {
        self.owner.load(Ordering::Relaxed)
    }

    /// Gives it an owner, or none. The change is handed over with the span, by the heap's lock.
    pub(crate) fn set_owner(&self, owner: *const Cache) {
        self.owner.store(owner.cast_mut(), Ordering::Relaxed);
    }

    /// Makes it an empty span of a class.
    pub(crate) fn start(&self, class: usize, owner: *const Cache) {
        self.class.set(class as u8);
        self.size.set(super::class::size(class) as u32);
        self.free.set(ptr::null_mut());
        self.freed.set(0);
        self.carved.set(0);
        self.notify_at.set(u32::MAX);
        self.is_full.set(false);
        self.kind.set(Kind::Blocks);
        self.set_owner(owner);
    }

    /// Whether every block that was ever handed out is back.
    pub(crate) fn is_empty(&self) -> bool {
        self.freed.get() == self.carved.get()
    }

    /// Adds a block of the owner's to its free ones.
    ///
    /// # Safety
    /// The block is one of this span, nobody uses it, and the caller is the owner.
    #[inline]
    pub(crate) unsafe fn put(&self, block: *mut Block) {
        // SAFETY: as the caller promises.
        unsafe { Block::link(block, self.free.get()) };
        self.free.set(block);
        self.freed.set(self.freed.get().wrapping_add(1));
    }

    /// Moves what other threads have freed to the owner's free blocks.
    pub(crate) fn collect(&self) {
        let mut block = self.remote.take();
        while !block.is_null() {
            // SAFETY: the list is the caller's now, and its blocks nobody's.
            unsafe {
                let next = Block::next(block);
                self.put(block);
                block = next;
            }
        }
    }

    /// Takes the owner's free blocks, or else those that other threads have freed: both count as used
    /// afterwards, as the latter still did, so nobody needs to go through them.
    pub(crate) fn take(&self) -> *mut Block {
        self.freed.set(0);
        match self.free.replace(ptr::null_mut()) {
            none if none.is_null() => self.remote.take(),
            list => list,
        }
    }
}
