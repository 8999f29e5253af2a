//! Many threads on the same pages: nothing is lost, the counters add up, and it ends.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Template, Window, page_size};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use support::{Rng, Watchdog, arena_rss, discard, numbered_pages};

const THREADS: usize = 8;
const PAGES: usize = 64 << 10;
/// What the repeated template's words are.
const WORD: u64 = 0x5555_aaaa_1234_9876;

/// Word `index` of a page, shared by all threads.
fn word(arena: &Arena, page: usize, index: usize) -> &AtomicU64 {
    // SAFETY: the word is within the arena and aligned; every value is valid, and all accesses of
    // these tests are atomic.
    unsafe { &*arena.as_ptr().add(page * page_size()).cast::<AtomicU64>().add(index) }
}

/// Has all threads write a word of their own to every page, in the same or in random order.
fn race(arena: &Arena, random: bool, untouched: u64) {
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let start = &start;
            scope.spawn(move || {
                let mut order: Vec<usize> = (0..PAGES).collect();
                if random {
                    Rng(thread as u64).shuffle(&mut order);
                }
                start.wait();
                for page in order {
                    let before =
                        word(arena, page, thread).swap(tag(page, thread), Ordering::Relaxed);
                    assert_eq!(before, untouched);
                }
            });
        }
    });
}

fn tag(page: usize, thread: usize) -> u64 {
    (page * THREADS + thread + 1) as u64
}

fn check(arena: &Arena, untouched: u64) {
    for page in 0..PAGES {
        for thread in 0..THREADS {
            assert_eq!(word(arena, page, thread).load(Ordering::Relaxed), tag(page, thread));
        }
        assert_eq!(word(arena, page, THREADS).load(Ordering::Relaxed), untouched);
    }
    let stats = arena.measure().unwrap();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (PAGES * page_size(), 0), "{stats}");
    assert_eq!(arena_rss(arena), PAGES * page_size());
}

fn races(random: bool) {
    let _watchdog = Watchdog::new("races", 60);
    for window in [Window::Pages(1), Window::Pages(16), Window::Adaptive] {
        for untouched in [0, WORD] {
            let template = Template::repeat(&untouched).unwrap();
            let builder = Arena::builder(PAGES * page_size()).template(template).window(window);
            let arena = builder.reserve().unwrap();
            race(&arena, random, untouched);
            let stats = arena.stats();
            if window == Window::Pages(1) {
                assert_eq!(stats.faults - stats.raced_faults, PAGES as u64, "{stats:?}");
            }
            check(&arena, untouched);
        }
    }
}

#[test]
fn eight_threads_in_the_same_order() {
    races(false);
}

#[test]
fn eight_threads_in_random_order() {
    races(true);
}

#[test]
fn a_budget_holds_against_threads_that_race_to_its_end() {
    let _watchdog = Watchdog::new("budget", 60);
    for window in [Window::Pages(1), Window::Pages(64), Window::Adaptive] {
        let budget = 3000 * page_size();
        let arena = Arena::builder(1 << 30).budget(budget).window(window).reserve().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let arena = &arena;
                scope.spawn(move || {
                    for page in 0..3000 {
                        word(arena, page, thread).store(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(arena.measure().unwrap().resident_bytes, budget, "{window:?}");
        assert_eq!(arena_rss(&arena), budget);
    }
}

#[test]
fn discards_race_with_faults() {
    let _watchdog = Watchdog::new("discards", 60);
    for window in [Window::Pages(1), Window::Adaptive] {
        for template in [Template::zero(), numbered_pages()] {
            let builder = Arena::builder(16 << 20).template(template.clone()).window(window);
            let arena = builder.reserve().unwrap();
            let zero = format!("{template:?}").contains("zero");
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (arena, stop) = (&arena, &stop);
                    scope.spawn(move || touch_until(arena, stop, thread, zero));
                }
                let mut rng = Rng(1);
                for _ in 0..2000 {
                    let first = rng.below(4096);
                    let end = (first + rng.below(1024)).min(4096);
                    discard(&arena, first * page_size()..end * page_size());
                }
                stop.store(true, Ordering::Relaxed);
            });
            let stats = arena.measure().unwrap();
            assert_eq!(stats.resident_bytes, arena_rss(&arena), "{stats}");
            discard(&arena, 0..arena.len());
            assert_eq!((arena.stats().resident_bytes, arena.stats().lent_bytes), (0, 0));
            assert_eq!(arena_rss(&arena), 0);
        }
    }
}

/// Reads and writes at random: a word is always the template's or the thread's own.
fn touch_until(arena: &Arena, stop: &AtomicBool, thread: usize, zero: bool) {
    let mut rng = Rng(thread as u64);
    while !stop.load(Ordering::Relaxed) {
        let page = rng.below(4096);
        let untouched = if zero { 0 } else { (page as u64) << 16 | thread as u64 };
        let value = word(arena, page, thread).load(Ordering::Relaxed);
        assert!(value == untouched || value == u64::MAX, "page {page}: {value:#x}");
        if rng.below(2) == 0 {
            word(arena, page, thread).store(u64::MAX, Ordering::Relaxed);
        }
    }
}

#[test]
fn arenas_come_and_go_beside_others() {
    let _watchdog = Watchdog::new("arenas", 60);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let lasting = Arena::builder(1 << 40).template(numbered_pages()).reserve().unwrap();
                for round in 0..300 {
                    let len = 1 << (12 + (thread + round) % 30);
                    let arena = Arena::builder(len).template(numbered_pages()).reserve().unwrap();
                    for page in [0, len / page_size() / 2, len / page_size() - 1] {
                        let value = word(&arena, page, 1).load(Ordering::Relaxed);
                        assert_eq!(value, (page as u64) << 16 | 1);
                    }
                    let value = word(&lasting, round * 777, 2).load(Ordering::Relaxed);
                    assert_eq!(value, (round as u64 * 777) << 16 | 2);
                }
            });
        }
    });
}
