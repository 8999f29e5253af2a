//! Heaps: general-purpose allocation within a reservation, bounded and counted.
//!
//! ```text
//!  access.rs    GlobalAlloc's operations on a heap's core
//!     |
//!  cache.rs     a thread's free blocks, by size class (class.rs, block.rs)
//!     |
//!  core.rs      shared by all threads, behind a lock: spans (span.rs), large.rs
//!     |
//!  territory.rs which address space is free; table.rs: from an address to what is known of it
//!     |
//!  pages.rs     what the budget is charged, and what the kernel is told
//! ```
//!
//! `thread.rs` knows which cache a thread has and when the thread ends; `setup.rs` makes a core;
//! `lacuna.rs` is the global allocator.

mod access;
#[cfg(feature = "allocator-api2")]
mod allocator;
mod block;
mod builder;
mod cache;
#[cfg(debug_assertions)]
mod check;
mod class;
mod core;
mod environment;
mod lacuna;
mod large;
mod line;
mod list;
mod pages;
mod quarantine;
mod setup;
mod span;
mod stats;
mod table;
mod territory;
mod thread;

pub use self::builder::HeapBuilder;
pub use self::lacuna::Lacuna;
pub use self::stats::{ClassStats, HeapStats};

use self::core::Core;
use crate::arena::{Arena, Mapping};
use crate::error::Result;
use ::core::alloc::{GlobalAlloc, Layout};
use ::core::fmt;
use ::core::ptr::NonNull;

/// A bounded heap of its own, over an [`Arena`]: a general-purpose allocator whose blocks lie in that
/// arena, count against its budget, and go with it.
///
/// The arena is handed to the kernel as a whole, which fills it by itself: every block works for
/// system calls before its first touch, and no block needs a signal. What a budget counts, in whole
/// pages: spans of small blocks as far as blocks were handed out of them, larger blocks in full
/// whether they were touched or not (from 4 MiB to 1 GiB in whole huge pages), and for half a second
/// what was freed of either. What no block uses makes room before an allocation is refused, but for
/// empty spans that other threads have at hand. An allocation
/// that would exceed it answers null, so `try_reserve` gives `Err`; it is never a violation.
///
/// It is a [`GlobalAlloc`], and with feature `allocator-api2` `&Heap` is an `Allocator`. A process may
/// have 64 heaps at the same time.
///
/// ```
/// use core::alloc::{GlobalAlloc, Layout};
///
/// let arena = lacuna::Arena::builder(1 << 30).name("session").budget(1 << 20).reserve()?;
/// let heap = lacuna::Heap::new(arena)?;
/// let layout = Layout::new::<[u64; 100]>();
/// // SAFETY: the layout has a size, and the block is freed once, with it.
/// unsafe {
///     let block = heap.alloc(layout);
///     assert!(!block.is_null());
///     assert_eq!(heap.stats().live_blocks, 1);
///     heap.dealloc(block, layout);
///     assert!(heap.alloc(Layout::new::<[u8; 2 << 20]>()).is_null(), "over the budget");
/// }
/// # Ok::<(), lacuna::Error>(())
/// ```
pub struct Heap {
    core: NonNull<Core>,
    // Dropped in this order: the tables before the arena whose books they lead to.
    _tables: Mapping,
    arena: Arena,
}

// SAFETY: what threads share of a heap is atomic or behind its locks; see `Core`.
unsafe impl Send for Heap {}
// SAFETY: as above.
unsafe impl Sync for Heap {}

impl Heap {
    /// A heap of the memory of `arena`, up to its limit; what the arena held is discarded.
    ///
    /// # Errors
    /// - [`ErrorKind::TemplateNotZero`](crate::ErrorKind::TemplateNotZero): blocks start as zeroes.
    /// - [`ErrorKind::NotPrivate`](crate::ErrorKind::NotPrivate),
    ///   [`ErrorKind::NotBasePages`](crate::ErrorKind::NotBasePages): the arena's memory is shared, or of
    ///   huge pages out of the system's pool.
    /// - [`ErrorKind::MustBeInherited`](crate::ErrorKind::MustBeInherited): forked children would get
    ///   the arena empty, but what leads to the heap's blocks with content.
    /// - [`ErrorKind::NotInherited`](crate::ErrorKind::NotInherited): this is such a child.
    /// - [`ErrorKind::TooShort`](crate::ErrorKind::TooShort): the arena, or its limit, is less than
    ///   2 MiB.
    /// - [`ErrorKind::TooManyHeaps`](crate::ErrorKind::TooManyHeaps).
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os): its tables cannot be mapped.
    pub fn new(arena: Arena) -> Result<Self> {
        Self::builder(arena).build()
    }

    /// Starts to make a heap of the memory of `arena` that is other than [`new`](Self::new) makes it.
    pub const fn builder(arena: Arena) -> HeapBuilder {
        HeapBuilder::new(arena)
    }

    /// The name of its arena.
    #[must_use]
    pub fn name(&self) -> &str {
        self.arena.name()
    }

    /// Numbers about the heap.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        self.core().stats()
    }

    /// Gives memory that no block uses back to the system at once: what this thread keeps at hand,
    /// what threads that have ended have left, and spans that are kept for half a second otherwise.
    pub fn purge(&self) {
        self.core().purge();
    }

    fn core(&self) -> &Core {
        // SAFETY: it lies in the tables, which this value owns.
        unsafe { self.core.as_ref() }
    }
}

// SAFETY: blocks are disjoint, of the size and alignment asked for, and stay until they are freed;
// nothing here unwinds.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.core().allocate(layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.core().allocate_zeroed(layout)
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { self.core().free(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe { self.core().reallocate(block, layout, size) }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        self.core().release_quarantine();
        thread::leave(self.core().seat);
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Heap").field("name", &self.name()).field("stats", &self.stats()).finish()
    }
}
