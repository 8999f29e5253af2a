//! Heaps, and their blocks by sizes.

use lacuna::{Arena, Heap};
use std::alloc::{GlobalAlloc, Layout};

pub(crate) fn heap(reserve: usize, budget: Option<usize>) -> Heap {
    let mut builder = Arena::builder(reserve);
    if let Some(bytes) = budget {
        builder = builder.budget(bytes);
    }
    Heap::new(builder.reserve().unwrap()).unwrap()
}

pub(crate) fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

pub(crate) fn alloc(heap: &Heap, layout: Layout) -> *mut u8 {
    assert!(layout.size() > 0);
    // SAFETY: the layout has a size.
    unsafe { heap.alloc(layout) }
}

/// Frees a block, once, that the caller has allocated with this layout.
pub(crate) fn free(heap: &Heap, block: *mut u8, layout: Layout) {
    // SAFETY: as said; these are tests.
    unsafe { heap.dealloc(block, layout) };
}
