//! The backend without userfaultfd where something else is in the way: no mapping left, a protection that
//! somebody else has set, memory that is locked.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Heap, OnFork, Template, Window, page_size};
use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{
    assert_killed, assert_success, discard, in_child, load, read_into, stderr, store, text,
};

const CHUNK: usize = 2 << 20;

fn protected(len: usize) -> lacuna::ArenaBuilder<'static> {
    Arena::builder(len).backend(Backend::Mprotect)
}

/// Page by page, each run a mapping.
fn scattered(len: usize) -> lacuna::ArenaBuilder<'static> {
    protected(len).window(Window::Pages(1)).lending(false)
}

fn most_mappings() -> usize {
    fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap()
}

/// Mappings that an arena is made of.
fn mappings(arena: &Arena) -> usize {
    let bytes = arena.as_ptr().addr()..arena.as_ptr().addr() + arena.len();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let starts = maps.lines().filter_map(support::addresses).map(|range| range.start);
    starts.filter(|start| bytes.contains(start)).count()
}

#[test]
fn threads_that_need_mappings_do_not_take_them_from_each_other() {
    let name = "threads_that_need_mappings_do_not_take_them_from_each_other";
    let output = in_child(name, "race", || {
        let arena = scattered(80 << 30).reserve().unwrap();
        let next = AtomicUsize::new(0);
        let chunks = most_mappings() * 29 / 65;
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    while let chunk @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                        && chunk < chunks
                    {
                        store(&arena, chunk * CHUNK, 1);
                        store(&arena, chunk * CHUNK + 2 * page_size(), 1);
                    }
                });
            }
        });
        assert!((0..chunks).all(|chunk| load(&arena, chunk * CHUNK + 2 * page_size()) == 1));
    });
    assert_success(&output);
}

/// The first chunk has a gap that the budget has no room for; all others have small ones.
#[test]
fn a_gap_that_does_not_fit_is_passed_over() {
    let output = in_child("a_gap_that_does_not_fit_is_passed_over", "gap", || {
        let chunks = most_mappings() / 4 + 60;
        let arena = scattered(80 << 30).budget((2 * chunks + 300) * page_size()).reserve().unwrap();
        store(&arena, CHUNK - page_size(), 1);
        for chunk in 0..chunks {
            store(&arena, chunk * CHUNK, 1);
            store(&arena, chunk * CHUNK + 2 * page_size(), 1);
        }
    });
    assert_success(&output);
}

#[test]
fn populating_joins_runs_as_a_touch_does() {
    let output = in_child("populating_joins_runs_as_a_touch_does", "populate", || {
        let arena = scattered(80 << 30).reserve().unwrap();
        for run in 0..most_mappings() / 2 + 10 {
            let at = 2 * run * page_size();
            arena.populate(at..at + page_size()).unwrap();
        }
    });
    assert_success(&output);
}

#[test]
fn runs_merge_whatever_children_get() {
    for on_fork in [OnFork::Inherit, OnFork::Wipe, OnFork::Forbid] {
        let arena = scattered(1 << 30).on_fork(on_fork).reserve().unwrap();
        (0..512).step_by(2).for_each(|page| store(&arena, page * page_size(), 1));
        (0..512).for_each(|page| store(&arena, page * page_size(), 1));
        assert!(mappings(&arena) < 5, "{on_fork:?}: {} mappings", mappings(&arena));
    }
}

/// Changes the protection of the page at `start`.
fn protect(start: *mut u8, protection: libc::c_int) {
    // SAFETY: the page is one of the tests', which want it so.
    assert_eq!(unsafe { libc::mprotect(start.cast(), page_size(), protection) }, 0);
}

#[test]
fn a_protection_that_somebody_else_has_set_is_theirs() {
    let name = "a_protection_that_somebody_else_has_set_is_theirs";
    for protection in [libc::PROT_READ, libc::PROT_NONE] {
        let output = in_child(name, &format!("arena {protection}"), || {
            let arena = protected(1 << 30).reserve().unwrap();
            store(&arena, 0, 1);
            protect(arena.as_ptr(), protection);
            store(&arena, 0, 2);
        });
        assert_killed(&output, libc::SIGSEGV);
        assert!(!stderr(&output).contains("lacuna"), "{}", text(&output));
        let output = in_child(name, &format!("heap {protection}"), || {
            let heap = Heap::new(protected(1 << 30).reserve().unwrap()).unwrap();
            let layout = Layout::from_size_align(4 * page_size(), page_size()).unwrap();
            // SAFETY: the block is as long as its layout says.
            unsafe {
                let block = heap.alloc(layout);
                block.write(1);
                protect(block, protection);
                block.write_volatile(2);
            }
        });
        assert_killed(&output, libc::SIGSEGV);
        assert!(!stderr(&output).contains("lacuna"), "{}", text(&output));
    }
}

#[test]
fn it_is_in_front_of_its_own_signal() {
    assert_success(&in_child("it_is_in_front_of_its_own_signal", "front", || {
        let arena = protected(1 << 30).reserve().unwrap();
        assert!(lacuna::is_in_front());
        lacuna::check_thread().unwrap();
        // SAFETY: resetting a signal runs no code.
        unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
        assert!(!lacuna::is_in_front());
        lacuna::take_front().unwrap();
        store(&arena, 0, 1);
    }));
}

/// What could not be discarded is there as before, for the kernel too.
#[test]
fn locked_pages_stay_accessible() {
    let template = Template::repeat(&7u8).unwrap();
    let arena = protected(1 << 30).template(template).reserve().unwrap();
    arena.populate(0..4 * page_size()).unwrap();
    (0..4).for_each(|page| store(&arena, page * page_size(), 1));
    // SAFETY: the page is the arena's.
    let locked = unsafe { libc::mlock(arena.as_ptr().add(2 * page_size()).cast(), page_size()) };
    assert_eq!(locked, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: nobody has a reference into the arena.
    unsafe { arena.discard(0..4 * page_size()) }.unwrap_err();
    // What lies before it was discarded.
    assert_eq!((load(&arena, 0), load(&arena, page_size())), (7, 7));
    assert_eq!((load(&arena, 2 * page_size()), load(&arena, 3 * page_size())), (1, 1));
    assert_eq!(read_into(&arena, 2 * page_size(), &[5; 100]).unwrap(), 100);
    assert_eq!(load(&arena, 2 * page_size()), 5);
    // SAFETY: as above.
    unsafe { libc::munlock(arena.as_ptr().cast(), 4 * page_size()) };
    discard(&arena, 0..4 * page_size());
    assert_eq!((load(&arena, 2 * page_size()), arena.stats().resident_bytes), (7, page_size()));
}

/// A limit that could not be enforced is enforced once it can be.
#[test]
fn a_recall_that_failed_can_be_done_later() {
    for backend in [Backend::Mprotect, Backend::Userfaultfd] {
        let name = "a_recall_that_failed_can_be_done_later";
        let output = in_child(name, &backend.to_string(), || {
            let arena = Arena::builder(1 << 30).name("a").backend(backend).reserve().unwrap();
            (0..512).step_by(8).for_each(|page| store(&arena, page * page_size(), 1));
            assert!(arena.stats().lent_bytes > 0);
            let limit = |descriptors| {
                let limit = libc::rlimit { rlim_cur: descriptors, rlim_max: 1024 };
                // SAFETY: the limit is valid.
                unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
            };
            limit(0);
            let result = arena.set_limit(page_size());
            limit(1024);
            assert!(backend == Backend::Userfaultfd || result.is_err());
            arena.set_limit(page_size()).unwrap();
            assert_eq!(load(&arena, 8 * page_size()), 1);
            store(&arena, 3 * page_size(), 1);
        });
        let said = stderr(&output);
        assert!(said.contains("arena \"a\": write at offset 12288 is past"), "{}", text(&output));
    }
}
