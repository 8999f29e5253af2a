//! The operations of `GlobalAlloc`, on a heap's core.

use super::cache::Cache;
use super::class;
use super::core::Core;
use super::span::Kind;
use super::thread;
use core::alloc::Layout;
use core::ptr;

impl Core {
    /// This thread's cache, if it may have one.
    #[inline]
    pub(crate) fn cache(&self) -> Option<&Cache> {
        let cache = match thread::cache(self.seat, self.id) {
            cache if cache.is_null() => thread::sit_down(self),
            cache => cache,
        };
        // SAFETY: a thread's cache is there until the thread or the heap ends.
        unsafe { cache.as_ref() }
    }

    /// As `GlobalAlloc::alloc`.
    #[inline]
    pub(crate) fn allocate(&self, layout: Layout) -> *mut u8 {
        match class::for_layout(layout.size(), layout.align()) {
            Some(class) => match self.cache() {
                Some(cache) => cache.allocate(class),
                None => self.common.lock().0.allocate(class),
            },
            None => self.allocate_large(layout.size(), layout.align(), false),
        }
    }

    /// As `GlobalAlloc::alloc_zeroed`.
    pub(crate) fn allocate_zeroed(&self, layout: Layout) -> *mut u8 {
        match class::for_layout(layout.size(), layout.align()) {
            Some(class) => match self.cache() {
                Some(cache) => cache.allocate_zeroed(class, layout.size()),
                None => self.common.lock().0.allocate_zeroed(class, layout.size()),
            },
            None => self.allocate_large(layout.size(), layout.align(), true),
        }
    }

    /// As `GlobalAlloc::dealloc`.
    ///
    /// # Safety
    /// As for that.
    #[inline]
    pub(crate) unsafe fn free(&self, block: *mut u8, layout: Layout) {
        #[cfg(debug_assertions)]
        self.check_freed(block, layout);
        // SAFETY: the block is one of this heap's, by the caller's promise.
        let span = unsafe { self.table.span_of(block.addr()) };
        match class::for_layout(layout.size(), layout.align()) {
            // SAFETY: as the caller promises.
            Some(_) => unsafe {
                match self.cache() {
                    Some(cache) => cache.free(span, block),
                    None => self.common.lock().0.free(span, block),
                }
            },
            // SAFETY: as the caller promises.
            None => unsafe { self.free_large(span, layout.size()) },
        }
    }

    /// As `GlobalAlloc::realloc`.
    ///
    /// # Safety
    /// As for that.
    pub(crate) unsafe fn reallocate(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        unsafe {
            let span = self.table.span_of(block.addr());
            if span.kind.get() == Kind::Blocks {
                let room = span.size.get() as usize;
                if size <= room && size >= room / 2 {
                    return block;
                }
            } else {
                let resized = self.resize_large(span, size, layout.align());
                if !resized.is_null() {
                    return resized;
                }
            }
            let new = self.allocate(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(block, new, layout.size().min(size));
                self.free(block, layout);
            } else if self.stays(span, size, layout.size()) {
                return block;
            }
            new
        }
    }
}
