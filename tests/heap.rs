//! What heaps promise beyond what an allocator must do.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ErrorKind, Heap, Template, page_size};
use std::alloc::{GlobalAlloc, Layout};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;
use std::time::{Duration, Instant};
use support::heap::{alloc, free, heap, layout};
use support::{assert_success, in_child};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// Bytes that the kernel has memory for, of the pages that `len` bytes at `address` lie in.
fn rss(address: usize, len: usize) -> usize {
    const PRESENT: u64 = 1 << 63;
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let (first, end) = (address / page_size(), (address + len).div_ceil(page_size()));
    let mut entries = vec![0u8; 8 * MIB];
    let mut present = 0;
    for page in (first..end).step_by(MIB) {
        let entries = &mut entries[..8 * MIB.min(end - page)];
        pagemap.read_exact_at(entries, 8 * page as u64).unwrap();
        let entries = entries.chunks_exact(8);
        present += entries
            .filter(|it| u64::from_ne_bytes((*it).try_into().unwrap()) & PRESENT != 0)
            .count();
    }
    present * page_size()
}

/// Fills a block that nobody has touched in five ways that touch it in the kernel first.
fn fill_by_system_calls(block: impl Fn() -> *mut u8, len: usize) {
    let zeroes = File::open("/dev/zero").unwrap();
    let iovec = |at: *mut u8| libc::iovec { iov_base: at.cast(), iov_len: len };
    // SAFETY: the blocks are so long, and this thread's.
    unsafe {
        assert_eq!(libc::read(zeroes.as_raw_fd(), block().cast(), len), len as isize);
        let two = [iovec(block()), iovec(block())];
        assert_eq!(libc::readv(zeroes.as_raw_fd(), two.as_ptr(), 2), 2 * len as isize);
        assert!(libc::getrandom(block().cast(), len, 0) > 0);
        let mut ends = [0; 2];
        assert_eq!(libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()), 0);
        assert_eq!(libc::send(ends[0], c"x".as_ptr().cast(), 1, 0), 1);
        assert_eq!(libc::recv(ends[1], block().cast(), len, 0), 1);
        ends.iter().for_each(|end| assert_eq!(libc::close(*end), 0));
        if len >= 4 {
            // A futex word that says something else: EAGAIN, not EFAULT.
            let word = block().cast::<u32>();
            let wait = libc::syscall(libc::SYS_futex, word, libc::FUTEX_WAIT, !0u32, 0usize);
            assert_eq!(
                (wait, std::io::Error::last_os_error().raw_os_error()),
                (-1, Some(libc::EAGAIN))
            );
        }
    }
}

/// With all signals blocked, so that no handler could help.
#[test]
fn system_calls_work_on_untouched_blocks_of_every_size() {
    let heap = heap(64 * GIB, None);
    // SAFETY: the mask is this thread's, and valid.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
    let classes: Vec<usize> = heap.stats().classes().map(|class| class.block_bytes).collect();
    let large = [200_000, MIB, MIB + 1, 3 * MIB, 100 * MIB];
    for size in classes.into_iter().chain(large) {
        fill_by_system_calls(|| alloc(&heap, layout(size)), size);
    }
    read_directly(&heap);
}

/// O_DIRECT pins the pages themselves.
fn read_directly(heap: &Heap) {
    use std::os::unix::fs::OpenOptionsExt;
    let path = std::env::current_exe().unwrap();
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path);
    // Not every file system has it.
    let Ok(file) = file else { return };
    let block = alloc(heap, Layout::from_size_align(64 << 10, 4096).unwrap());
    // SAFETY: the block is so long, and this thread's.
    let read = unsafe { libc::pread(file.as_raw_fd(), block.cast(), 64 << 10, 0) };
    assert_eq!(read, 64 << 10, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    assert_eq!(unsafe { std::slice::from_raw_parts(block, 4) }, b"\x7fELF");
}

#[test]
fn large_blocks_cost_nothing_until_they_are_touched() {
    let heap = heap(1 << 40, None);
    let sixty_four = layout(64 * GIB);
    let start = Instant::now();
    let block = alloc(&heap, sixty_four);
    let time = start.elapsed();
    assert!(!block.is_null());
    assert!(time < Duration::from_micros(100), "{time:?}");
    assert_eq!(rss(block.addr(), 64 * GIB), 0);
    // SAFETY: the block is so long.
    unsafe { block.add(40 * GIB).write(1) };
    assert_eq!(rss(block.addr(), 64 * GIB), page_size());
    assert_eq!(heap.stats().lent_bytes, 64 * GIB);
    free(&heap, block, sixty_four);
    assert_eq!(rss(block.addr(), 64 * GIB), 0);
    assert_eq!(heap.stats().lent_bytes, 0);
}

/// In place where the space after it is free, and else by moving its pages.
#[test]
fn growing_a_large_block_does_not_copy() {
    let heap = heap(1 << 40, None);
    for blocked in [false, true] {
        let mut size = 512 * MIB;
        let mut block = alloc(&heap, layout(size));
        for offset in (0..size).step_by(page_size()) {
            // SAFETY: the block is so long.
            unsafe { block.add(offset).write((offset / page_size()) as u8) };
        }
        let start = Instant::now();
        while size < 16 * GIB {
            if blocked {
                alloc(&heap, layout(3 * MIB));
            }
            // SAFETY: the block is of this heap.
            block = unsafe { heap.realloc(block, layout(size), size * 2) };
            assert!(!block.is_null());
            size *= 2;
        }
        let time = start.elapsed();
        let start = Instant::now();
        // SAFETY: the block is so long, and initialised up to there.
        let copy = unsafe { std::slice::from_raw_parts(block, 512 * MIB) }.to_vec();
        std::hint::black_box(copy);
        let copying = start.elapsed();
        assert!(time < copying, "{time:?}, copying once {copying:?}, blocked: {blocked}");
        for offset in (0..512 * MIB).step_by(page_size()) {
            // SAFETY: the block is so long.
            assert_eq!(unsafe { block.add(offset).read() }, (offset / page_size()) as u8);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { block.add(size - 1).read() }, 0);
        // The last byte was read, on a page that may be a huge one.
        assert!(rss(block.addr(), size) <= 514 * MIB);
        free(&heap, block, layout(size));
        assert_eq!(rss(block.addr(), size), 0);
    }
}

#[test]
fn zeroed_blocks_are_not_cleared_where_they_are_zero() {
    let heap = heap(64 * GIB, None);
    for size in [100_000, 300_000, 32 * MIB, 8 * GIB] {
        // SAFETY: the layout has a size.
        let block = unsafe { heap.alloc_zeroed(layout(size)) };
        // The first word of a block that has a class was part of a list.
        let touched = if size < 128 << 10 { page_size() } else { 0 };
        assert_eq!(rss(block.addr(), size), touched, "{size}");
        // SAFETY: the block is so long.
        unsafe { block.write_bytes(1, size.min(MIB)) };
        free(&heap, block, layout(size));
        // SAFETY: as above.
        let again = unsafe { heap.alloc_zeroed(layout(size)) };
        // SAFETY: the block is so long.
        assert!((0..size.min(MIB)).all(|offset| unsafe { again.add(offset).read() } == 0));
        free(&heap, again, layout(size));
    }
}

#[test]
fn a_budget_answers_null_and_can_be_used_again() {
    for size in [16, 100, 1000, 5000, 20_000, 100_000, 200_000, 3 * MIB] {
        let budget = 32 * MIB;
        let heap = heap(GIB, Some(budget));
        let mut blocks = Vec::new();
        loop {
            let block = alloc(&heap, layout(size));
            if block.is_null() {
                break;
            }
            // SAFETY: the block is so long.
            unsafe { block.write_bytes(7, size) };
            blocks.push(block);
            if blocks.len() % 64 == 0 {
                assert!(heap.stats().resident_bytes + heap.stats().lent_bytes <= budget);
            }
        }
        let all = blocks.len();
        assert!(all * size > budget * 3 / 4, "{all} blocks of {size}");
        // Every other one, so that no span is empty.
        for index in (0..all).step_by(2) {
            free(&heap, blocks[index], layout(size));
        }
        let again = all.div_ceil(2);
        for _ in 0..again {
            assert!(!alloc(&heap, layout(size)).is_null(), "{size}: {}", heap.stats());
        }
    }
}

/// What one size has left free serves the others, up to the last page.
#[test]
fn freed_memory_serves_other_sizes() {
    let heap = heap(GIB, Some(16 * MIB));
    for size in [64, 150_000, 2000, 40_000, 4 * MIB, 24, 900_000, 7000] {
        let mut blocks = Vec::new();
        loop {
            let block = alloc(&heap, layout(size));
            if block.is_null() {
                break;
            }
            blocks.push(block);
        }
        assert!(blocks.len() * size > 11 * MIB, "{} of {size}: {}", blocks.len(), heap.stats());
        blocks.into_iter().for_each(|block| free(&heap, block, layout(size)));
        assert_eq!(heap.stats().live_bytes, 0);
        // What this thread still has at hand would not serve another size.
        heap.purge();
    }
}

#[test]
fn impossible_layouts_get_null() {
    let heap = heap(GIB, None);
    let most = isize::MAX as usize;
    for size in [most - 7, most / 2, 2 * GIB, GIB + 1] {
        assert!(alloc(&heap, layout(size)).is_null());
        let small = alloc(&heap, layout(100));
        // SAFETY: the block is of this heap.
        assert!(unsafe { heap.realloc(small, layout(100), size) }.is_null());
        free(&heap, small, layout(100));
    }
    assert!(alloc(&heap, Layout::from_size_align(8, 1 << 40).unwrap()).is_null());
    assert_eq!(heap.stats().live_blocks, 0);
    assert_eq!(heap.stats().lent_bytes, 0, "{}", heap.stats());
}

#[test]
fn alignments_beyond_chunks_work() {
    let heap = heap(64 * GIB, None);
    for shift in 0..32 {
        for size in [1, 5000, 3 * MIB] {
            let layout = Layout::from_size_align(size, 1 << shift).unwrap();
            let blocks: Vec<_> = (0..3).map(|_| alloc(&heap, layout)).collect();
            for block in blocks {
                assert!(!block.is_null() && block.addr().is_multiple_of(1 << shift));
                // SAFETY: the block is so long.
                unsafe { block.write_bytes(1, size) };
                free(&heap, block, layout);
            }
        }
    }
}

#[test]
fn an_arena_that_is_no_place_for_a_heap_is_refused() {
    let kind = |arena: Arena| Heap::new(arena).unwrap_err().kind();
    let template = Template::repeat(&1u8).unwrap();
    let arena = Arena::builder(GIB).template(template).reserve().unwrap();
    assert_eq!(kind(arena), ErrorKind::TemplateNotZero);
    assert_eq!(kind(Arena::builder(MIB).reserve().unwrap()), ErrorKind::TooShort);
    assert_eq!(kind(Arena::builder(GIB).limit(MIB).reserve().unwrap()), ErrorKind::TooShort);
}

#[test]
fn what_the_arena_held_is_gone() {
    let arena = Arena::builder(GIB).reserve().unwrap();
    support::store(&arena, 0, 7);
    let heap = Heap::new(arena).unwrap();
    // SAFETY: the layout has a size; the block is so long.
    unsafe { assert_eq!(heap.alloc_zeroed(layout(200_000)).read(), 0) };
}

/// In a process of its own: it takes all the heaps that a process may have.
#[test]
fn heaps_come_and_go() {
    let output = in_child("heaps_come_and_go", "heaps", || {
        for _ in 0..3 {
            let heaps: Vec<_> = (0..64).map(|_| heap(GIB, None)).collect();
            let arena = Arena::builder(GIB).reserve().unwrap();
            assert_eq!(Heap::new(arena).unwrap_err().kind(), ErrorKind::TooManyHeaps);
            for heap in &heaps {
                let blocks: Vec<_> = (0..100).map(|_| alloc(heap, layout(100))).collect();
                std::thread::scope(|scope| {
                    scope.spawn(|| alloc(heap, layout(100)).addr());
                });
                assert_eq!(heap.stats().live_blocks, 101);
                assert!(blocks.iter().all(|block| !block.is_null()));
            }
        }
    });
    assert_success(&output);
}

/// A thread's cache goes when it ends, and its spans serve others.
#[test]
fn short_threads_leave_nothing_behind() {
    let heap = heap(GIB, None);
    let churn = |threads: usize| {
        for _ in 0..threads {
            let kept = std::thread::scope(|scope| {
                let work = scope.spawn(|| {
                    let all: Vec<_> = (1..50)
                        .map(|size| alloc(&heap, layout(size * 16)).expose_provenance())
                        .collect();
                    for (size, block) in (1..49).zip(&all) {
                        free(&heap, ptr::with_exposed_provenance_mut(*block), layout(size * 16));
                    }
                    all[48]
                });
                work.join().unwrap()
            });
            free(&heap, ptr::with_exposed_provenance_mut(kept), layout(49 * 16));
        }
    };
    churn(200);
    let before = heap.stats();
    churn(2000);
    let after = heap.stats();
    assert_eq!(after.live_blocks, 0);
    assert!(after.peak_resident_bytes <= before.peak_resident_bytes + MIB, "{before}\n{after}");
    heap.purge();
    assert_eq!(heap.stats().resident_bytes, 0, "{}", heap.stats());
}

/// Freed spans go back to the system by themselves after a while.
#[test]
fn memory_returns_without_being_asked() {
    let heap = heap(GIB, None);
    let blocks: Vec<_> = (0..10_000).map(|_| alloc(&heap, layout(1000))).collect();
    let peak = heap.stats().resident_bytes;
    blocks.into_iter().for_each(|block| free(&heap, block, layout(1000)));
    let deadline = Instant::now() + Duration::from_secs(20);
    // Something has to be going on in the heap.
    while heap.stats().resident_bytes > peak / 10 {
        assert!(Instant::now() < deadline, "{}", heap.stats());
        let some: Vec<_> = (0..200).map(|_| alloc(&heap, layout(3000))).collect();
        some.into_iter().for_each(|block| free(&heap, block, layout(3000)));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_file_can_be_read_into_a_vector_of_a_heap() {
    // By the standard library's own way of reading, with the system's allocator's vector beside.
    let heap = heap(GIB, None);
    let mut file = File::open("Cargo.toml").unwrap();
    let mut expected = Vec::new();
    file.read_to_end(&mut expected).unwrap();
    let block = alloc(&heap, layout(expected.len()));
    let mut file = File::open("Cargo.toml").unwrap();
    // SAFETY: the block is so long; the kernel initialises it.
    let bytes = unsafe { std::slice::from_raw_parts_mut(block, expected.len()) };
    file.read_exact(bytes).unwrap();
    assert_eq!(bytes, expected);
}
