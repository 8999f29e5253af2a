//! Freed large blocks that are touched: the line tells the heap, the block's size and where, whatever the
//! backend; what is not touched goes on as without the option.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Heap, Lacuna};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr;
use support::fork::status_of_fork;
use support::heap::{alloc, free, layout};
use support::{Rng, assert_killed, assert_success, in_child, rss, stderr, text};

const CHUNK: usize = 2 << 20;
const GIB: usize = 1 << 30;

fn heap_with(backend: Option<Backend>, reserve: usize) -> Heap {
    let mut builder = Arena::builder(reserve).name("session");
    if let Some(backend) = backend {
        builder = builder.backend(backend);
    }
    Heap::builder(builder.reserve().unwrap()).poison_freed(true).build().unwrap()
}

fn heap() -> Heap {
    heap_with(None, 64 * GIB)
}

/// Touches a byte of what may be a freed block.
fn read(block: *mut u8, at: usize) -> u8 {
    // SAFETY: it is not, where the process is to die of it.
    unsafe { block.add(at).read_volatile() }
}

fn write(block: *mut u8, at: usize) {
    // SAFETY: as above.
    unsafe { block.add(at).write_volatile(1) };
}

/// Runs `misuse` in a process of its own, which must die with this line and no other.
#[track_caller]
fn dies(name: &str, role: &str, line: &str, misuse: impl FnOnce()) {
    let output = in_child(name, role, misuse);
    assert_killed(&output, libc::SIGSEGV);
    assert_eq!(stderr(&output), format!("lacuna: heap \"session\": {line}\n"), "{}", text(&output));
}

#[test]
fn a_touch_after_free_is_reported() {
    const NAME: &str = "a_touch_after_free_is_reported";
    let extent = "read of freed block of 5000000 bytes at offset 4000000, 4000000 bytes into it";
    for (role, backend) in [("uffd", Backend::Userfaultfd), ("mprotect", Backend::Mprotect)] {
        dies(NAME, role, extent, || {
            let heap = heap_with(Some(backend), GIB);
            let block = alloc(&heap, layout(5_000_000));
            write(block, 4_000_000);
            free(&heap, block, layout(5_000_000));
            read(block, 4_000_000);
        });
    }
    let run = "write of freed block of 200000 bytes at offset 0, 0 bytes into it";
    dies(NAME, "run", run, || {
        let heap = heap();
        let block = alloc(&heap, layout(200_000));
        free(&heap, block, layout(200_000));
        write(block, 0);
    });
    let huge = format!(
        "write of freed block of {} bytes at offset {}, {} bytes into it",
        3 * GIB / 4,
        GIB / 2,
        GIB / 2
    );
    dies(NAME, "huge", &huge, || {
        let heap = heap();
        let block = alloc(&heap, layout(3 * GIB / 4));
        (0..3 * GIB / 4).step_by(64 << 20).for_each(|at| write(block, at));
        free(&heap, block, layout(3 * GIB / 4));
        write(block, GIB / 2);
    });
    let offset = format!("at offset {}, 7 bytes into it", CHUNK + 7);
    dies(NAME, "moved", &format!("read of freed block of 8388608 bytes {offset}"), || {
        let heap = heap();
        let first = alloc(&heap, layout(CHUNK));
        let block = alloc(&heap, layout(8 << 20));
        let after = alloc(&heap, layout(CHUNK));
        write(block, 7);
        // SAFETY: the block has this layout, and is not used any more where it was; or so it should be.
        let moved = unsafe { heap.realloc(block, layout(8 << 20), 16 << 20) };
        assert_eq!((moved != block, read(moved, 7)), (true, 1));
        assert!(first != after);
        read(block, 7);
    });
}

#[test]
fn system_calls_and_children_find_it_too() {
    let heap = heap();
    let block = alloc(&heap, layout(CHUNK));
    write(block, 0);
    free(&heap, block, layout(CHUNK));
    let (from, to) = std::io::pipe().unwrap();
    // SAFETY: the kernel looks before it reads or writes.
    unsafe {
        let (from, to) =
            (std::os::fd::AsRawFd::as_raw_fd(&from), std::os::fd::AsRawFd::as_raw_fd(&to));
        assert_eq!(libc::write(to, block.cast(), 1), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
        assert_eq!(libc::write(to, c"x".as_ptr().cast(), 1), 1);
        assert_eq!(libc::read(from, block.cast(), 1), -1);
        assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EFAULT));
    }
    for status in [
        status_of_fork(|| {
            // SAFETY: the line goes nowhere.
            unsafe { libc::close(libc::STDERR_FILENO) };
            read(block, 1);
        }),
        support::fork::status_of_raw_fork(|| {
            // SAFETY: as above.
            unsafe { libc::close(libc::STDERR_FILENO) };
            read(block, 1);
        }),
    ] {
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status}");
    }
    support::fork::fork(|| {
        let other = alloc(&heap, layout(CHUNK));
        write(other, 0);
        free(&heap, other, layout(CHUNK));
        assert_eq!(heap.stats().poisoned_bytes, 2 * CHUNK);
    });
    assert_eq!(heap.stats().poisoned_bytes, CHUNK);
}

#[test]
fn memory_and_budget_go_back_at_once() {
    let arena = Arena::builder(GIB).budget(16 * CHUNK).reserve().unwrap();
    let (start, len) = (arena.as_ptr().addr(), arena.len());
    let heap = Heap::builder(arena).poison_freed(true).build().unwrap();
    for _ in 0..20 {
        let blocks: Vec<_> = (0..15).map(|_| alloc(&heap, layout(CHUNK))).collect();
        for block in blocks {
            assert!(!block.is_null());
            (0..CHUNK).step_by(4096).for_each(|at| write(block, at));
            free(&heap, block, layout(CHUNK));
        }
        assert_eq!(heap.stats().lent_bytes, 0);
        assert_eq!(rss(start, len), 0);
    }
    // All of it was in quarantine; the rest was let go when nothing else was left.
    assert!(heap.stats().poisoned_bytes > GIB / 4, "{}", heap.stats());
}

#[test]
fn the_quarantine_is_bounded_and_first_in_first_out() {
    let heap = heap();
    let first = alloc(&heap, layout(CHUNK));
    free(&heap, first, layout(CHUNK));
    let mut reused = None;
    for round in 0..2000 {
        let block = alloc(&heap, layout(CHUNK));
        write(block, 1);
        assert_eq!(read(block, 2), 0, "fresh memory");
        if block == first {
            reused = Some(round);
            free(&heap, block, layout(CHUNK));
            break;
        }
        free(&heap, block, layout(CHUNK));
        assert!(heap.stats().poisoned_bytes <= GIB);
    }
    let reused = reused.expect("addresses are used again");
    assert!(reused >= GIB / CHUNK - 1, "after {reused}");
}

#[test]
fn many_blocks_are_too_many_for_the_quarantine_at_last() {
    // Alone: what there is room for is the process's.
    let output = in_child("many_blocks_are_too_many_for_the_quarantine_at_last", "many", || {
        let heap = heap();
        for _ in 0..3000 {
            let block = alloc(&heap, layout(200_000));
            assert_eq!(read(block, 1), 0, "fresh memory");
            write(block, 1);
            free(&heap, block, layout(200_000));
        }
        assert_eq!(heap.stats().poisoned_bytes, 1024 * (256 << 10));
        // Another heap has no room then, and goes on without.
        let other = heap_with(None, GIB);
        let block = alloc(&other, layout(200_000));
        free(&other, block, layout(200_000));
        assert_eq!(other.stats().poisoned_bytes, 0);
        drop(heap);
        let block = alloc(&other, layout(200_000));
        free(&other, block, layout(200_000));
        assert!(other.stats().poisoned_bytes > 0);
    });
    assert_success(&output);
}

#[test]
fn address_space_that_is_needed_is_had_back() {
    let heap = heap_with(None, 64 << 20);
    for size in [60 << 20, 30 << 20, 1 << 20, 58 << 20, 200_000, 60 << 20] {
        let block = alloc(&heap, layout(size));
        assert!(!block.is_null(), "{size}: {}", heap.stats());
        write(block, size - 1);
        free(&heap, block, layout(size));
    }
}

#[test]
fn a_block_larger_than_the_quarantine_is_poisoned_at_its_start() {
    let heap = heap();
    let block = alloc(&heap, layout(3 * GIB));
    write(block, 2 * GIB);
    free(&heap, block, layout(3 * GIB));
    assert_eq!(heap.stats().poisoned_bytes, GIB);
    assert_eq!(heap.stats().lent_bytes, 0);
    assert_eq!(read(block, 2 * GIB), 0, "its memory is gone");
    heap.purge();
    assert_eq!(heap.stats().poisoned_bytes, GIB);
}

#[test]
fn heaps_that_go_leave_nothing_behind() {
    for _ in 0..30 {
        let heap = heap();
        let blocks: Vec<_> = (0..100).map(|_| alloc(&heap, layout(150_000))).collect();
        blocks.into_iter().for_each(|block| free(&heap, block, layout(150_000)));
        assert!(heap.stats().poisoned_bytes >= 100 * 150_000);
    }
}

#[test]
fn threads_free_each_others_blocks() {
    let heap = heap();
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let heap = &heap;
            scope.spawn(move || {
                let mut rng = Rng(thread);
                let mut blocks: Vec<(*mut u8, Layout)> = Vec::new();
                for _ in 0..400 {
                    let layout = layout(140_000 + rng.below(6 << 20));
                    let block = alloc(heap, layout);
                    write(block, layout.size() - 1);
                    blocks.push((block, layout));
                    if blocks.len() > 6 {
                        let (block, layout) = blocks.swap_remove(rng.below(7));
                        assert_eq!(read(block, layout.size() - 1), 1);
                        free(heap, block, layout);
                    }
                }
                blocks.into_iter().for_each(|(block, layout)| free(heap, block, layout));
            });
        }
    });
    assert_eq!((heap.stats().live_bytes, heap.stats().lent_bytes), (0, 0));
}

#[test]
fn without_the_option_nothing_is_poisoned() {
    let heap = support::heap::heap(GIB, None);
    let block = alloc(&heap, layout(CHUNK));
    free(&heap, block, layout(CHUNK));
    assert_eq!(heap.stats().poisoned_bytes, 0);
    assert_eq!(alloc(&heap, layout(CHUNK)), block, "it was kept");
}

static GLOBAL: Lacuna = Lacuna::new().reserve(64 * GIB);

fn misuse_global() {
    let layout = layout(300_000);
    // SAFETY: the layout has a size; what comes after the free is the point.
    unsafe {
        let block = GLOBAL.alloc(layout);
        GLOBAL.dealloc(block, layout);
        if GLOBAL.stats().poisoned_bytes > 0 {
            block.add(9).write_volatile(1);
        }
    }
}

#[test]
fn the_environment_says_so_to_the_global_allocator() {
    const NAME: &str = "the_environment_says_so_to_the_global_allocator";
    const ROLE: &str = "LACUNA_TEST_POISON";
    if std::env::var_os(ROLE).is_some() {
        misuse_global();
        std::process::exit(0);
    }
    let run = |value| support::rerun(NAME, &[("LACUNA_POISON", value), (ROLE, "1")]);
    let output = run("1");
    assert_killed(&output, libc::SIGSEGV);
    let line = "lacuna: heap \"global\": write of freed block of 300000 bytes at offset 9, 9 bytes into it\n";
    assert_eq!(stderr(&output), line);
    assert_success(&run("0"));
}

#[test]
fn other_faults_stay_as_they_are() {
    let output = in_child("other_faults_stay_as_they_are", "wild", || {
        let heap = heap();
        free(&heap, alloc(&heap, layout(CHUNK)), layout(CHUNK));
        // SAFETY: it is not, and the process dies of it.
        unsafe { ptr::without_provenance::<u8>(0x1000).read_volatile() };
    });
    assert_killed(&output, libc::SIGSEGV);
    assert_eq!(stderr(&output), "");
}
