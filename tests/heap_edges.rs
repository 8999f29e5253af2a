//! What a review of the heap found, each as a test that failed before.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Heap, Lacuna, Template};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::heap::{alloc, free, heap, layout};
use support::{Watchdog, assert_success, in_child};

const MIB: usize = 1 << 20;

fn free_at(heap: &Heap, address: usize, layout: Layout) {
    free(heap, std::ptr::with_exposed_provenance_mut(address), layout);
}

/// The span of a thread that ended was still said to be full when the next thread took it.
#[test]
fn a_full_span_can_change_hands() {
    let heap = heap(64 * MIB, None);
    thread::scope(|scope| {
        let fill = || {
            let blocks: Vec<usize> =
                (0..1025).map(|_| alloc(&heap, layout(64)).expose_provenance()).collect();
            // Freed by another thread while the owner lives.
            thread::scope(|scope| {
                let freed = || blocks[..1024].iter().for_each(|it| free_at(&heap, *it, layout(64)));
                scope.spawn(freed);
            });
        };
        scope.spawn(fill).join().unwrap();
    });
    let held: Vec<_> = (0..4).map(|_| alloc(&heap, layout(128))).collect();
    heap.purge();
    held.iter().for_each(|block| free(&heap, *block, layout(128)));
    heap.purge();
    let mut seen = HashSet::new();
    for size in [128, 256, 512, 1024] {
        for _ in 0..600 {
            let block = alloc(&heap, layout(size)).addr();
            assert!((0..size).step_by(64).all(|offset| seen.insert(block + offset)), "{block:#x}");
        }
    }
}

#[test]
fn any_alignment_gets_an_answer() {
    static SMALL: Lacuna = Lacuna::new().reserve(1 << 32);
    let heap = heap(64 * MIB, None);
    for shift in 21..=62 {
        let layout = Layout::from_size_align(1, 1 << shift).unwrap();
        let block = alloc(&heap, layout);
        if !block.is_null() {
            free(&heap, block, layout);
        }
        // SAFETY: the layout has a size.
        assert!(shift < 40 || unsafe { SMALL.alloc(layout) }.is_null());
    }
}

/// What is kept for later holds address space and budget, but not against who needs it.
#[test]
fn kept_memory_makes_room() {
    // Address space that freed runs hold.
    let runs = heap(2 * MIB, None);
    let blocks = [alloc(&runs, layout(MIB)), alloc(&runs, layout(MIB))];
    blocks.iter().for_each(|block| free(&runs, *block, layout(MIB)));
    assert!(!alloc(&runs, layout(64)).is_null());
    // And small spans.
    let spans = heap(4 * MIB, None);
    let blocks: Vec<_> = (0..4000)
        .map(|_| alloc(&spans, layout(1024)))
        .take_while(|block| !block.is_null())
        .collect();
    blocks.iter().for_each(|block| free(&spans, *block, layout(1024)));
    assert!(!alloc(&spans, layout(100 << 10)).is_null(), "{}", spans.stats());
    // Budget that a block needs which grows where it is.
    let growing = heap(256 * MIB, Some(64 * MIB));
    let block = alloc(&growing, layout(40 * MIB));
    let runs: Vec<_> = (0..20).map(|_| alloc(&growing, layout(MIB))).collect();
    runs.iter().for_each(|run| free(&growing, *run, layout(MIB)));
    // SAFETY: the block is of this heap.
    let grown = unsafe { growing.realloc(block, layout(40 * MIB), 50 * MIB) };
    assert!(!grown.is_null(), "{}", growing.stats());
}

/// A thread's own empty spans, and those whose blocks other threads have freed.
#[test]
fn spans_of_this_thread_make_room() {
    let own = heap(64 * MIB, Some(MIB));
    for kibibytes in [128, 112, 96, 80, 64, 56] {
        let layout = layout(kibibytes << 10);
        let blocks: Vec<_> = (0..4).map(|_| alloc(&own, layout)).collect();
        assert!(blocks.iter().all(|it| !it.is_null()), "{kibibytes} KiB: {}", own.stats());
        blocks.iter().for_each(|block| free(&own, *block, layout));
    }
    let others = heap(64 * MIB, Some(4 * MIB));
    let blocks: Vec<usize> =
        (0..3000).map(|_| alloc(&others, layout(1024)).expose_provenance()).collect();
    thread::scope(|scope| {
        scope.spawn(|| blocks.iter().for_each(|block| free_at(&others, *block, layout(1024))));
    });
    assert!(!alloc(&others, layout(2 * MIB)).is_null(), "{}", others.stats());
}

/// What is left of extents that were taken for their alignment joins its neighbours.
#[test]
fn extents_come_together() {
    for align in [4, 8, 16] {
        for skew in 0..16 {
            let heap = heap(128 * MIB, None);
            let whole = layout(heap.stats().reserved_bytes);
            let skewed = layout((skew * 2 * MIB).max(1));
            let before = alloc(&heap, skewed);
            let aligned = Layout::from_size_align(2 * MIB, align * 2 * MIB).unwrap();
            let blocks = [alloc(&heap, aligned), alloc(&heap, aligned)];
            blocks.iter().for_each(|block| free(&heap, *block, aligned));
            free(&heap, before, skewed);
            heap.purge();
            assert!(!alloc(&heap, whole).is_null(), "{align} {skew}: {}", heap.stats());
        }
    }
}

/// One block is live at a time.
#[test]
fn zeroed_runs_do_not_pile_up() {
    let heap = heap(1 << 38, None);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(300) {
        let layout = layout(256 << 10);
        // SAFETY: the layout has a size; the block is so long, and freed once.
        unsafe {
            let block = heap.alloc_zeroed(layout);
            assert_eq!(block.add(5000).read(), 0);
            block.write_bytes(1, 256 << 10);
            heap.dealloc(block, layout);
        }
        assert!(heap.stats().lent_bytes < 8 * MIB, "{}", heap.stats());
    }
}

#[test]
fn statistics_never_count_below_zero() {
    let heap = heap(1 << 30, None);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    free(&heap, alloc(&heap, layout(200_000)), layout(200_000));
                }
            });
        }
        let most = (0..100_000).map(|_| heap.stats().live_blocks).max();
        stop.store(true, Ordering::Relaxed);
        // Some may have been counted between two loads; below zero would be 2^64.
        assert!(most.unwrap() < 1 << 32, "{most:?}");
    });
}

#[test]
fn freeing_keeps_errno() {
    let heap = heap(1 << 32, None);
    let stop = AtomicBool::new(false);
    // SAFETY: errno is this thread's.
    let errno = || unsafe { libc::__errno_location() };
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    free(&heap, alloc(&heap, layout(200_000)), layout(200_000));
                }
            });
        }
        let changed = (0..50_000).filter(|round| {
            let layout = layout(if round % 64 == 0 { 9 * MIB } else { 200_000 });
            let block = alloc(&heap, layout);
            // SAFETY: as above.
            unsafe { errno().write(7777) };
            free(&heap, block, layout);
            // SAFETY: as above.
            unsafe { errno().read() != 7777 }
        });
        let changed = changed.count();
        stop.store(true, Ordering::Relaxed);
        assert_eq!(changed, 0);
    });
}

/// Forks a process whose child runs `body`, and tells its status.
fn forked(body: impl FnOnce()) -> i32 {
    let mut status = 0;
    // SAFETY: the child runs what is async-signal-safe or made so by the heap, and ends at once.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            libc::alarm(10);
            body();
            libc::_exit(0);
        }
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
    }
    status
}

/// A fork between a promise and its settling left the child's budget waiting for ever.
#[test]
fn a_child_gets_null_at_its_budget() {
    let _watchdog = Watchdog::new("promises", 100);
    let output = in_child("a_child_gets_null_at_its_budget", "forker", || {
        let heap = heap(1 << 32, Some(64 * MIB));
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        let blocks: Vec<_> = (0..64).map(|_| alloc(&heap, layout(4096))).collect();
                        blocks.iter().for_each(|block| free(&heap, *block, layout(4096)));
                        heap.purge();
                    }
                });
            }
            for _ in 0..200 {
                let status = forked(|| {
                    for size in [4 * MIB, 200_000, 130_000, 64] {
                        while !alloc(&heap, layout(size)).is_null() {}
                    }
                });
                assert_eq!(status, 0);
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert_success(&output);
}

/// Heaps need no userfaultfd, so a child that cannot have one keeps them.
#[test]
fn a_child_without_descriptors_keeps_its_heaps() {
    let output = in_child("a_child_without_descriptors_keeps_its_heaps", "forker", || {
        let heap = heap(1 << 32, None);
        let block = alloc(&heap, layout(64));
        // SAFETY: the block is so long; the limits are valid.
        unsafe {
            block.write(5);
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // The child says that it has no userfaultfd, which is right and not looked at here.
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_WRONLY);
            libc::dup2(null, libc::STDERR_FILENO);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none);
        }
        // SAFETY: as above.
        let status = forked(|| assert_eq!(unsafe { block.read_volatile() }, 5));
        assert_eq!(status, 0);
    });
    assert!(output.status.success(), "{}", support::text(&output));
}

/// A page that was dropped behind an arena's back faulted in a thread that the fork waited for.
#[test]
fn a_reset_in_place_and_a_fork_do_not_wait_for_each_other() {
    let _watchdog = Watchdog::new("reset and fork", 100);
    let name = "a_reset_in_place_and_a_fork_do_not_wait_for_each_other";
    let output = in_child(name, "forker", || {
        let template = Template::repeat(&7u8).unwrap();
        let builder = Arena::builder(1 << 30).keep_resident(8 * MIB).huge_pages(false);
        let arena = builder.template(template).reserve().unwrap();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    arena.populate(0..2 * MIB).unwrap();
                    // SAFETY: nobody has a reference into the arena.
                    unsafe {
                        libc::madvise(arena.as_ptr().cast(), 2 * MIB, libc::MADV_DONTNEED);
                        arena.reset().unwrap();
                    }
                }
            });
            (0..100).for_each(|_| assert_eq!(forked(|| {}), 0));
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert_success(&output);
}

/// Blocks that grow by being moved, with hardly a mapping left: nothing is lost, however the moves end.
/// In a process of its own, whose mappings it uses up.
#[test]
fn moving_at_the_limit_of_mappings_loses_nothing() {
    let name = "moving_at_the_limit_of_mappings_loses_nothing";
    let output = in_child(name, "mover", || {
        let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let most: usize = most.trim().parse().unwrap();
        (0..10).for_each(|left| grow_with_mappings_left(most, left));
    });
    assert_success(&output);
}

fn grow_with_mappings_left(most: usize, left: usize) {
    let heap = heap(1 << 37, None);
    let mut len = 2 * MIB;
    let mut block = alloc(&heap, layout(len));
    let mut grow = |new: bool| {
        // SAFETY: the block is so long, and of this heap.
        unsafe {
            if !new {
                // In the way of growing in place.
                alloc(&heap, layout(len * 2));
                let grown = heap.realloc(block, layout(len), len * 2);
                if grown.is_null() {
                    return;
                }
                block = grown;
                for offset in (0..len).step_by(MIB) {
                    assert_eq!(block.add(offset).cast::<usize>().read(), offset + 1, "of {len:#x}");
                }
                len *= 2;
            }
            (0..len).step_by(MIB).for_each(|at| block.add(at).cast::<usize>().write(at + 1));
        }
    };
    grow(true);
    (0..6).for_each(|_| grow(false));
    let page = lacuna::page_size();
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, split page by page until there are no more mappings, and then unmapped.
    unsafe {
        let len = 2 * page * (most + 10);
        let start = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
        let at = |index: usize| start.byte_add(page * (2 * index + 1));
        let mut count = 0;
        while libc::mprotect(at(count), page, libc::PROT_READ) == 0 {
            count += 1;
        }
        (1..=left).for_each(|index| _ = libc::mprotect(at(count - index), page, libc::PROT_NONE));
        grow(false);
        grow(false);
        libc::munmap(start, len);
    }
    grow(false);
}

/// A block that fills the budget leaves no room for the smaller one that it is to become.
#[test]
fn shrinking_never_fails() {
    let budget = 8 * MIB;
    for (size, small) in [(8 * MIB, 80), (MIB, 100), (8 * MIB, 1_500_000), (128 << 10, 16)] {
        let heap = heap(1 << 30, Some(budget));
        let mut blocks = Vec::new();
        loop {
            let block = alloc(&heap, layout(size));
            if block.is_null() {
                break;
            }
            // SAFETY: the block is so long.
            unsafe { block.write_bytes(9, size) };
            blocks.push(block);
        }
        for block in &mut blocks {
            // SAFETY: the block is of this heap, and then so long.
            unsafe {
                *block = heap.realloc(*block, layout(size), small);
                assert!(!block.is_null(), "{size} to {small}: {}", heap.stats());
                assert!((0..small).all(|offset| block.add(offset).read() == 9));
            }
        }
        // What is small stays in its span, and frees nothing.
        let freed = size > 128 << 10;
        assert!(!freed || !alloc(&heap, layout(4000)).is_null(), "{}", heap.stats());
        for block in blocks {
            // SAFETY: as above.
            let grown = unsafe { heap.realloc(block, layout(small), small + 5000) };
            assert!(!grown.is_null(), "{small}: {}", heap.stats());
            free(&heap, grown, layout(small + 5000));
        }
        assert_eq!(heap.stats().live_blocks, usize::from(freed));
    }
}
