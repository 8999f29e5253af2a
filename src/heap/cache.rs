//! A thread's part of a heap: for each class a list of free blocks at hand, and the spans they come
//! from. No lock and no atomic read-modify-write on the common path.

use super::block::Block;
use super::class;
use super::core::Core;
use super::list::{Linked, Links, List};
use super::span::{Kind, Span};
use super::table::Table;
use crate::atomic::{AtomicU64, Ordering};
use core::cell::Cell;
use core::ptr;

/// Full spans looked at, whether other threads have freed some of their blocks, before a new span is
/// taken: each new span looks at so many, so the list grows by an eighth at most while it is gone
/// through.
const LOOKED_AT: usize = 8;

/// A class's blocks at hand.
#[repr(C, align(64))]
pub(crate) struct Bin {
    /// Blocks to hand out next, all of the current span.
    free: Cell<*mut Block>,
    /// The current span; null for none.
    span: Cell<*const Span>,
    /// Other spans with blocks that the owner has freed.
    partial: List<Span>,
    /// Spans with none, as far as the owner knows.
    full: List<Span>,
    /// Blocks that this thread was given, ever. Written by the thread, read by anybody.
    allocated: AtomicU64,
    /// Blocks that this thread has freed, ever, whoever's they were.
    freed: AtomicU64,
}

/// A thread's cache.
#[repr(C, align(128))]
pub(crate) struct Cache {
    /// The heap's. Set when the cache is made; caches stay with their heap.
    pub(crate) core: *const Core,
    /// A copy of the heap's.
    pub(crate) table: Table,
    /// Whether the last block that `refill` found was zeroes, but for its first word.
    found_zeroes: Cell<bool>,
    links: Links<Cache>,
    bins: [Bin; class::COUNT],
}

impl Linked for Cache {
    fn links(&self) -> &Links<Self> {
        &self.links
    }
}

impl Cache {
    pub(crate) const fn new(core: *const Core, table: Table) -> Self {
        Self {
            core,
            table,
            found_zeroes: Cell::new(false),
            links: Links::new(),
            bins: [const {
                Bin {
                    free: Cell::new(ptr::null_mut()),
                    span: Cell::new(ptr::null()),
                    partial: List::new(),
                    full: List::new(),
                    allocated: AtomicU64::new(0),
                    freed: AtomicU64::new(0),
                }
            }; class::COUNT],
        }
    }

    fn core(&self) -> &Core {
        // SAFETY: a cache goes with its heap.
        unsafe { &*self.core }
    }

    /// A block of class `class`; null if there is no memory or no budget.
    #[inline]
    pub(crate) fn allocate(&self, class: usize) -> *mut u8 {
        let bin = &self.bins[class];
        let block = bin.free.get();
        if block.is_null() {
            return self.refill(bin, class);
        }
        // SAFETY: the block is free, and in the list of this thread.
        let next = unsafe { Block::next(block) };
        Block::prefetch(next);
        bin.free.set(next);
        bin.count_allocated();
        #[cfg(debug_assertions)]
        self.core().check_allocated(block.cast(), class);
        block.cast()
    }

    /// As [`allocate`](Self::allocate), with the first `size` bytes zero.
    pub(crate) fn allocate_zeroed(&self, class: usize, size: usize) -> *mut u8 {
        self.found_zeroes.set(false);
        let block = self.allocate(class);
        if !block.is_null() {
            let written = if self.found_zeroes.get() { size.min(size_of::<Block>()) } else { size };
            // SAFETY: the block is new, and at least so long.
            unsafe { block.write_bytes(0, written) };
        }
        block
    }

    /// Frees a block of `span`.
    ///
    /// # Safety
    /// The block is one of the span's, and nobody uses it any more.
    #[inline]
    pub(crate) unsafe fn free(&self, span: &Span, block: *mut u8) {
        // SAFETY: as the caller promises.
        unsafe {
            if !ptr::eq(span.owner(), self) {
                return self.free_elsewhere(span, block);
            }
            self.bins.get_unchecked(usize::from(span.class.get())).count_freed();
            span.put(block.cast());
        }
        if span.freed.get() == span.notify_at.get() {
            self.notice(span);
        }
    }

    /// Frees a block of a span that another thread owns, or nobody, as of large blocks that were shrunk
    /// where they are.
    ///
    /// # Safety
    /// As for [`free`](Self::free).
    #[inline(never)]
    unsafe fn free_elsewhere(&self, span: &Span, block: *mut u8) {
        // SAFETY: as the caller promises. The span cannot go while the block is counted as used.
        unsafe {
            if span.kind.get() != Kind::Blocks {
                let core = self.core();
                return core.free_large(span, core.bytes(span));
            }
            self.bins[usize::from(span.class.get())].count_freed();
            span.remote.push(block.cast());
        }
    }

    /// A span has blocks again, or all of them.
    #[cold]
    #[inline(never)]
    fn notice(&self, span: &Span) {
        let bin = &self.bins[usize::from(span.class.get())];
        if span.is_full.replace(false) {
            bin.full.remove(span);
            bin.partial.push_front(span);
            span.notify_at.set(span.carved.get());
        }
        if span.is_empty() {
            bin.partial.remove(span);
            self.core().give_span(span);
        }
    }

    /// Finds more blocks, and hands out the first; null if there are none after everything was given
    /// back that no block uses.
    #[cold]
    #[inline(never)]
    fn refill(&self, bin: &Bin, class: usize) -> *mut u8 {
        match self.find(bin, class) {
            block if block.is_null() => {
                self.release_empty();
                self.core().give_kept();
                self.find(bin, class)
            }
            block => block,
        }
    }

    /// Finds more blocks, and hands out the first.
    fn find(&self, bin: &Bin, class: usize) -> *mut u8 {
        loop {
            if let Some(span) = bin.current() {
                let used = span.take();
                let list = if used.is_null() { self.core().carve(span) } else { used };
                self.found_zeroes.set(used.is_null() && span.is_clean.get());
                if !list.is_null() {
                    // SAFETY: the list is this thread's now.
                    bin.free.set(unsafe { Block::next(list) });
                    bin.count_allocated();
                    #[cfg(debug_assertions)]
                    self.core().check_allocated(list.cast(), class);
                    return list.cast();
                }
                bin.set_aside(span);
                if span.carved.get() == 0 {
                    // There was not even memory for its first block.
                    bin.full.remove(span);
                    span.is_full.set(false);
                    self.core().give_span(span);
                    return ptr::null_mut();
                }
            }
            match bin.next_span().or_else(|| self.core().take_span(class, self)) {
                Some(span) => bin.make_current(span),
                None => return ptr::null_mut(),
            }
        }
    }

    /// Gives every span up: empty ones to the heap, others to whichever thread needs them. The
    /// thread that had the cache is gone, or about to be.
    pub(crate) fn abandon(&self) {
        for bin in &self.bins {
            if let Some(span) = bin.current() {
                bin.put_back(span);
                bin.span.set(ptr::null());
                self.core().give_up_span(span);
            }
            for list in [&bin.partial, &bin.full] {
                while let Some(span) = list.pop_front() {
                    self.core().give_up_span(span);
                }
            }
        }
    }

    /// Gives the heap what is empty.
    pub(crate) fn release_empty(&self) {
        for bin in &self.bins {
            if let Some(span) = bin.current() {
                bin.put_back(span);
                bin.span.set(ptr::null());
                bin.partial.push_back(span);
            }
            for _ in 0..bin.full.iter().count() {
                if let Some(span) = bin.full.pop_front() {
                    span.is_full.set(false);
                    bin.partial.push_back(span);
                }
            }
            for _ in 0..bin.partial.iter().count() {
                let Some(span) = bin.partial.pop_front() else { break };
                span.collect();
                span.notify_at.set(span.carved.get());
                match span.is_empty() {
                    true => self.core().give_span(span),
                    false if span.free.get().is_null() => bin.set_aside(span),
                    false => bin.partial.push_back(span),
                }
            }
        }
    }

    /// Blocks of a class that the thread was given and that it has freed.
    pub(crate) fn counts(&self, class: usize) -> (u64, u64) {
        let bin = &self.bins[class];
        (bin.allocated.load(Ordering::Relaxed), bin.freed.load(Ordering::Relaxed))
    }
}

impl Bin {
    fn current(&self) -> Option<&Span> {
        // SAFETY: spans are entries of the heap's table, which outlives the cache.
        unsafe { self.span.get().as_ref() }
    }

    #[inline]
    fn count_allocated(&self) {
        add_alone(&self.allocated);
    }

    #[inline]
    fn count_freed(&self) {
        add_alone(&self.freed);
    }

    fn make_current(&self, span: &Span) {
        span.notify_at.set(u32::MAX);
        self.span.set(span);
    }

    /// Makes the current span, which has no free block, one of the full.
    fn set_aside(&self, span: &Span) {
        self.span.set(ptr::null());
        span.is_full.set(true);
        span.notify_at.set(1);
        self.full.push_back(span);
    }

    /// Gives the blocks at hand back to the current span.
    fn put_back(&self, span: &Span) {
        let mut block = self.free.replace(ptr::null_mut());
        while !block.is_null() {
            // SAFETY: the list is this thread's, and its blocks are the current span's.
            unsafe {
                let next = Block::next(block);
                span.put(block);
                block = next;
            }
        }
    }

    /// A span with free blocks, as far as the thread has one.
    fn next_span(&self) -> Option<&Span> {
        if let Some(span) = self.partial.pop_front() {
            return Some(span);
        }
        for _ in 0..LOOKED_AT {
            let span = self.full.first()?;
            self.full.remove(span);
            if !span.remote.is_empty() {
                span.is_full.set(false);
                return Some(span);
            }
            self.full.push_back(span);
        }
        None
    }
}

/// Adds one to a counter that only this thread writes: no read-modify-write is needed.
#[inline]
fn add_alone(counter: &AtomicU64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
