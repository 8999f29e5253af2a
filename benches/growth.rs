//! Memory that grows: in steps of 64 KiB, as a Wasm instance's does, by one thread and by two at once; and a
//! block of a heap of 1 GiB, fully written, to twice its size. What has no room where it is must move there
//! without being copied: at most a tenth of copying it.

mod common;

use common::memory::Mapping;
use common::{Contestant, Sample, Session};
use lacuna::{Arena, Heap, page_size};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use std::time::Instant;

const STEP: usize = 64 << 10;

fn main() {
    Session::run(|session| {
        let steps = session.mode().pick(100_000, 10_000, 100);
        for threads in [1, 2] {
            session.race(
                &format!("growing by 64 KiB, {threads} threads"),
                "step",
                vec![
                    Contestant::new("mprotect", move || together(threads, steps, mprotect)),
                    Contestant::new("lacuna, set_limit", move || {
                        together(threads, steps, set_limit)
                    }),
                ],
            );
        }
        let len = session.mode().pick(1 << 30, 1 << 28, 16 << 20);
        for huge in [false, true] {
            let pages = if huge { "huge" } else { "small" };
            session.race(
                &format!("a block of {} MiB in {pages} pages, to twice that", len >> 20),
                "page",
                vec![
                    Contestant::new("copying", move || copy(len, huge)),
                    Contestant::new("lacuna, realloc", move || reallocate(len, huge)),
                    Contestant::new("lacuna, move_pages", move || move_pages(len, huge)),
                ],
            );
        }
    });
}

/// A heap, and a block of it with another right after it, every page of it written.
fn full_block(len: usize, huge: bool) -> (Heap, *mut u8, Layout) {
    let heap = Heap::new(Arena::builder(16 * len).reserve().expect("it can be reserved"));
    let heap = heap.expect("there is room");
    let layout = Layout::from_size_align(len, 8).expect("a layout");
    // SAFETY: the layouts have sizes, and the blocks are as long.
    unsafe {
        // Those that are to be zeroes are filled in small pages, and so are those of a gibibyte and more.
        let block = if huge { heap.alloc(layout) } else { heap.alloc_zeroed(layout) };
        assert!(!block.is_null() && !heap.alloc(Layout::new::<[u8; 4 << 20]>()).is_null());
        if huge {
            libc::madvise(block.cast(), len, libc::MADV_HUGEPAGE);
        }
        (0..len).step_by(page_size()).for_each(|at| block.add(at).write(1));
        (heap, block, layout)
    }
}

fn copy(len: usize, huge: bool) -> Sample {
    let (heap, block, layout) = full_block(len, huge);
    let start = Instant::now();
    let double = Layout::from_size_align(2 * len, 8).expect("a layout");
    // SAFETY: both blocks are as long, and the old one is freed once.
    unsafe {
        let new = heap.alloc(double);
        assert!(!new.is_null());
        ptr::copy_nonoverlapping(block, new, len);
        heap.dealloc(block, layout);
    }
    Sample::timed(start.elapsed(), len / page_size())
}

fn reallocate(len: usize, huge: bool) -> Sample {
    let (heap, block, layout) = full_block(len, huge);
    let start = Instant::now();
    // SAFETY: the block has this layout, and is not used any more where it was.
    let new = unsafe { heap.realloc(block, layout, 2 * len) };
    let time = start.elapsed();
    assert!(!new.is_null() && new != block, "it had room where it was");
    // SAFETY: the block is longer.
    assert_eq!(unsafe { new.add(len - page_size()).read() }, 1);
    Sample::timed(time, len / page_size())
}

/// What it would be by UFFDIO_MOVE.
fn move_pages(len: usize, huge: bool) -> Sample {
    let arena = Arena::builder(2 * len).huge_pages(huge).reserve().expect("it can be reserved");
    arena.populate(0..len).expect("there is memory");
    let start = Instant::now();
    // SAFETY: nobody has a reference into the arena.
    unsafe { arena.move_pages(0..len, &arena, len) }.expect("they can be moved");
    Sample::timed(start.elapsed(), len / page_size())
}

/// Has each thread grow memory of its own by so many steps.
fn together(threads: usize, steps: usize, grow: fn(usize)) -> Sample {
    let start = Instant::now();
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(|| grow(steps))));
    });
    Sample::timed(start.elapsed(), threads * steps)
}

fn mprotect(steps: usize) {
    let memory = Mapping::new(steps * STEP, libc::PROT_NONE, libc::MADV_NOHUGEPAGE);
    for step in 0..steps {
        memory.protect(step * STEP..(step + 1) * STEP, libc::PROT_READ | libc::PROT_WRITE);
    }
}

fn set_limit(steps: usize) {
    let memory = Arena::builder(steps * STEP).limit(0).reserve().expect("it can be reserved");
    for step in 1..=steps {
        memory.set_limit(step * STEP).expect("the limit lies within the arena");
    }
}
