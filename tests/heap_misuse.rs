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

fn alloc(heap: &Heap, size: usize) -> *mut u8 {
    // SAFETY: no test asks for nothing.
    unsafe { heap.alloc(layout(size)) }
}

/// Frees what may not be freed, but for one test.
fn free(heap: &Heap, block: *mut u8, size: usize) {
    // SAFETY: none, on purpose; the process ends by it.
    unsafe { heap.dealloc(block, layout(size)) };
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
    ends_with(NAME, "small", "double free", |heap| {
        let block = alloc(heap, 100);
        free(heap, block, 100);
        free(heap, block, 100);
    });
    ends_with(NAME, "large", "freed before", |heap| {
        let block = alloc(heap, 300_000);
        free(heap, block, 300_000);
        free(heap, block, 300_000);
    });
    ends_with(NAME, "by another thread", "double free of a block", |heap| {
        let block = alloc(heap, 1000);
        let address = block.expose_provenance();
        std::thread::scope(|scope| {
            scope.spawn(|| free(heap, std::ptr::with_exposed_provenance_mut(address), 1000));
        });
        free(heap, block, 1000);
    });
}

#[test]
fn a_foreign_pointer_is_reported() {
    const NAME: &str = "a_foreign_pointer_is_reported";
    ends_with(NAME, "stack", "not a block of this heap", |heap| {
        let mut value = 0u64;
        free(heap, (&raw mut value).cast(), 8);
    });
    ends_with(NAME, "other heap", "not a block of this heap", |heap| {
        let arena = Arena::builder(1 << 30).reserve().unwrap();
        let other = Heap::new(arena).unwrap();
        free(heap, alloc(&other, 64), 64);
    });
    ends_with(NAME, "midst", "into the midst of a block", |heap| {
        let block = alloc(heap, 64);
        free(heap, block.wrapping_add(8), 64);
    });
    ends_with(NAME, "never", "freed before", |heap| {
        let block = alloc(heap, 64);
        free(heap, block.wrapping_add(100 << 20), 64);
    });
}

#[test]
fn a_wrong_layout_is_reported() {
    const NAME: &str = "a_wrong_layout_is_reported";
    ends_with(NAME, "smaller", "another layout", |heap| {
        free(heap, alloc(heap, 1000), 100);
    });
    ends_with(NAME, "larger", "another layout", |heap| {
        free(heap, alloc(heap, 100), 1000);
    });
    ends_with(NAME, "large", "another layout", |heap| {
        free(heap, alloc(heap, 300_000), 900_000);
    });
}

#[test]
fn right_use_is_not_reported() {
    let output = in_child("right_use_is_not_reported", "right", || {
        let heap = heap();
        for size in [1, 8, 16, 100, 5000, 100_000, 200_000, 3 << 20] {
            let mut block = alloc(&heap, size);
            let mut now = size;
            for next in [size * 3 / 4 + 1, size / 2 + 1, size, size / 4 + 1, 2 * size] {
                // SAFETY: the block is of this heap, and has this layout.
                block = unsafe { heap.realloc(block, layout(now), next) };
                now = next;
            }
            free(&heap, block, now);
        }
    });
    assert_success(&output);
}

/// A block that takes all the address space has no other place to become small in, and stays.
#[test]
fn a_block_that_could_not_move_is_no_misuse() {
    let output = in_child("a_block_that_could_not_move_is_no_misuse", "tight", || {
        let heap = Heap::new(Arena::builder(4 << 20).reserve().unwrap()).unwrap();
        let block = alloc(&heap, 3 << 20);
        // SAFETY: the block is of this heap, and has this layout.
        let block = unsafe { heap.realloc(block, layout(3 << 20), 1) };
        free(&heap, block, 1);
        assert_eq!(heap.stats().live_blocks, 0);
    });
    assert_success(&output);
}
