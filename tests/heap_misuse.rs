//! What a debug build says about blocks that are given back wrongly, and what it does not mind.

#![allow(missing_docs, reason = "a test")]
#![cfg(debug_assertions)]

mod support;

use lacuna::{Arena, Heap};
use std::alloc::{GlobalAlloc, Layout};
use support::{assert_killed, assert_success, in_child, stderr, text};

fn heap() -> Heap {
    Heap::new(Arena::builder(1 << 30).name("misused").reserve().unwrap()).unwrap()
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).unwrap()
}

/// Runs `misuse` in a process of its own, which must end with the message.
fn ends_with(name: &str, role: &str, message: &str, misuse: fn(&Heap)) {
    let output = in_child(name, role, || misuse(&heap()));
    assert_killed(&output, libc::SIGABRT);
    let said = stderr(&output);
    assert!(said.contains("heap \"misused\"") && said.contains(message), "{}", text(&output));
}

#[test]
fn a_double_free_is_reported() {
    const NAME: &str = "a_double_free_is_reported";
    // SAFETY: none; that is what is tested, in a process that ends by it. So below.
    ends_with(NAME, "small", "double free", |heap| unsafe {
        let block = heap.alloc(layout(100));
        heap.dealloc(block, layout(100));
        heap.dealloc(block, layout(100));
    });
    ends_with(NAME, "large", "freed before", |heap| unsafe {
        let block = heap.alloc(layout(300_000));
        heap.dealloc(block, layout(300_000));
        heap.dealloc(block, layout(300_000));
    });
    ends_with(NAME, "by another thread", "double free of a block", |heap| unsafe {
        let block = heap.alloc(layout(1000));
        let address = block.expose_provenance();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                heap.dealloc(std::ptr::with_exposed_provenance_mut(address), layout(1000))
            });
        });
        heap.dealloc(block, layout(1000));
    });
}

#[test]
fn a_foreign_pointer_is_reported() {
    const NAME: &str = "a_foreign_pointer_is_reported";
    ends_with(NAME, "stack", "not a block of this heap", |heap| unsafe {
        let mut value = 0u64;
        heap.dealloc((&raw mut value).cast(), layout(8));
    });
    ends_with(NAME, "other heap", "not a block of this heap", |heap| unsafe {
        let arena = Arena::builder(1 << 30).reserve().unwrap();
        let other = Heap::new(arena).unwrap();
        heap.dealloc(other.alloc(layout(64)), layout(64));
    });
    ends_with(NAME, "midst", "into the midst of a block", |heap| unsafe {
        let block = heap.alloc(layout(64));
        heap.dealloc(block.add(8), layout(64));
    });
    ends_with(NAME, "never", "freed before", |heap| unsafe {
        let block = heap.alloc(layout(64));
        heap.dealloc(block.add(100 << 20), layout(64));
    });
}

#[test]
fn a_wrong_layout_is_reported() {
    const NAME: &str = "a_wrong_layout_is_reported";
    ends_with(NAME, "smaller", "another layout", |heap| unsafe {
        heap.dealloc(heap.alloc(layout(1000)), layout(100));
    });
    ends_with(NAME, "larger", "another layout", |heap| unsafe {
        heap.dealloc(heap.alloc(layout(100)), layout(1000));
    });
    ends_with(NAME, "large", "another layout", |heap| unsafe {
        heap.dealloc(heap.alloc(layout(300_000)), layout(900_000));
    });
}

#[test]
fn right_use_is_not_reported() {
    let output = in_child("right_use_is_not_reported", "right", || {
        let heap = heap();
        for size in [1, 8, 16, 100, 5000, 100_000, 200_000, 3 << 20] {
            // SAFETY: each block is given back once, as it is then.
            unsafe {
                let mut block = heap.alloc(layout(size));
                let mut now = size;
                for next in [size * 3 / 4 + 1, size / 2 + 1, size, size / 4 + 1, 2 * size] {
                    block = heap.realloc(block, layout(now), next);
                    now = next;
                }
                heap.dealloc(block, layout(now));
            }
        }
    });
    assert_success(&output);
}
