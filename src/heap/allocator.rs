//! `&Heap` as an allocator for collections, by the stable mirror of the standard library's trait.

use super::Heap;
use allocator_api2::alloc::{AllocError, Allocator};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::NonNull;

// SAFETY: blocks stay where they are until they are freed, whatever becomes of the reference, which
// the heap outlives; a copy of the reference is the same allocator.
unsafe impl Allocator for &Heap {
    fn allocate(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the layout has a size.
        block(layout, |layout| unsafe { self.alloc(layout) })
    }

    fn allocate_zeroed(&self, layout: Layout) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: the layout has a size.
        block(layout, |layout| unsafe { self.alloc_zeroed(layout) })
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() > 0 {
            // SAFETY: as the caller promises.
            unsafe { self.dealloc(block.as_ptr(), layout) };
        }
    }

    unsafe fn grow(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: as the caller promises.
        unsafe { resize(self, block, old, new) }
    }

    unsafe fn shrink(
        &self,
        block: NonNull<u8>,
        old: Layout,
        new: Layout,
    ) -> Result<NonNull<[u8]>, AllocError> {
        // SAFETY: as the caller promises.
        unsafe { resize(self, block, old, new) }
    }
}

/// A block for `layout`; one of no size is nowhere.
fn block(
    layout: Layout,
    allocate: impl FnOnce(Layout) -> *mut u8,
) -> Result<NonNull<[u8]>, AllocError> {
    let start = match layout.size() {
        0 => core::ptr::without_provenance_mut(layout.align()),
        _ => allocate(layout),
    };
    let start = NonNull::new(start).ok_or(AllocError)?;
    Ok(NonNull::slice_from_raw_parts(start, layout.size()))
}

/// Resizes a block; it moves where the alignment changes, too.
///
/// # Safety
/// As for `Allocator::grow` or `shrink`.
unsafe fn resize(
    heap: &Heap,
    old_block: NonNull<u8>,
    old: Layout,
    new: Layout,
) -> Result<NonNull<[u8]>, AllocError> {
    // SAFETY: as the caller promises.
    unsafe {
        if old.size() > 0 && new.size() > 0 && old.align() == new.align() {
            return block(new, |new| heap.realloc(old_block.as_ptr(), old, new.size()));
        }
        let resized = heap.allocate(new)?;
        let len = old.size().min(new.size());
        old_block.copy_to_nonoverlapping(resized.cast(), len);
        heap.deallocate(old_block, old);
        Ok(resized)
    }
}
