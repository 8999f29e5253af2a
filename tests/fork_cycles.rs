//! Fork, check, exit, over and over, while other threads fault, discard, lend and allocate.
//!
//! `LACUNA_FORKS=10000` sets how often; a thousand times by default.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Heap, OnFork, Template, page_size};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use support::fork::{drop_copy, fork};
use support::heap::{alloc, free, heap, layout};
use support::{Rng, Watchdog, arena_rss, discard, load, numbered_pages, store};

const CHUNK: usize = 2 << 20;

/// Pages of each thread's part of an arena.
const PAGES: usize = 256;

struct World {
    /// A repeated byte.
    repeated: Arena,
    /// Pages that tell their number.
    numbered: Arena,
    /// Zeroes, so that chunks are lent and recalled.
    zeroes: Arena,
    wiped: Arena,
    heap: Heap,
}

impl World {
    fn new() -> Self {
        let arena = || Arena::builder(1 << 40);
        let budget = 32 * CHUNK;
        let template = Template::repeat(&0x77u8).unwrap();
        Self {
            repeated: arena().template(template.clone()).reserve().unwrap(),
            numbered: arena().template(numbered_pages()).reserve().unwrap(),
            zeroes: arena().budget(budget).reserve().unwrap(),
            wiped: arena().template(template).on_fork(OnFork::Wipe).reserve().unwrap(),
            heap: heap(1 << 30, Some(256 << 20)),
        }
    }

    /// What a thread does, once.
    fn touch(&self, rng: &mut Rng, thread: usize) {
        let base = thread << 33;
        let page = base + rng.below(PAGES) * page_size();
        store(&self.repeated, page, 1);
        store(&self.numbered, page, 0xff);
        store(&self.wiped, page, 1);
        store(&self.zeroes, base + rng.below(8) * CHUNK + rng.below(PAGES) * page_size(), 1);
        if rng.below(8) == 0 {
            let some = base + rng.below(PAGES) * page_size();
            let some = some..some + (1 + rng.below(16)) * page_size();
            discard(&self.repeated, some.clone());
            discard(&self.numbered, some.clone());
            discard(&self.wiped, some);
        }
        if rng.below(64) == 0 {
            discard(&self.zeroes, base..base + (1 + rng.below(8)) * CHUNK);
            drop(Arena::builder(1 << 30).reserve().unwrap());
        }
        let layout = layout(8 << rng.below(14));
        let block = alloc(&self.heap, layout);
        if !block.is_null() {
            // SAFETY: the block is this function's, and so long.
            unsafe {
                block.write_bytes(thread as u8, layout.size());
                assert_eq!(block.add(layout.size() - 1).read(), thread as u8);
            }
            free(&self.heap, block, layout);
        }
    }

    /// In a child: everything is whole, and works.
    fn check(&self, cycle: usize) {
        let mut rng = Rng(cycle as u64);
        for _ in 0..16 {
            let page = (rng.below(3) << 33) + rng.below(PAGES) * page_size();
            let byte = load(&self.repeated, page);
            assert!(byte == 1 || byte == 0x77, "{byte}");
            assert_eq!(load(&self.repeated, page + 1), 0x77);
            let number = (page / page_size()) << 16;
            let byte = load(&self.numbered, page);
            assert!(byte == 0xff || byte == number as u8, "{byte}");
            assert_eq!(load(&self.numbered, page + 2), (number >> 16) as u8);
            assert_eq!(load(&self.wiped, page), 0x77);
            assert!(load(&self.zeroes, page) <= 1);
            self.touch(&mut rng, 5);
        }
        // The counters agree with the kernel, which takes a while to tell.
        if cycle.is_multiple_of(16) {
            for arena in [&self.repeated, &self.numbered, &self.wiped] {
                assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(arena));
            }
            discard(&self.zeroes, 0..self.zeroes.len());
            let stats = self.zeroes.stats();
            assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, 0));
        }
        if cycle.is_multiple_of(32) {
            fork(|| {
                assert_eq!(
                    (load(&self.repeated, 1 << 38), load(&self.wiped, 1 << 38)),
                    (0x77, 0x77)
                );
                self.touch(&mut rng, 5);
            });
        }
        if cycle.is_multiple_of(4) {
            drop_copy(&self.numbered);
            assert_eq!(load(&self.repeated, 1 << 39), 0x77);
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn forks_under_load() {
    let forks = std::env::var("LACUNA_FORKS").map_or(1000, |it| it.parse().unwrap());
    let _watchdog = Watchdog::new("forks under load", 60 + forks as u64 / 10);
    let world = World::new();
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (world, stop, rounds) = (&world, &stop, &rounds);
            scope.spawn(move || {
                let mut rng = Rng(thread as u64);
                while !stop.load(Ordering::Relaxed) {
                    world.touch(&mut rng, thread);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Whatever becomes of this thread, the others end.
        let _stop = Stop(&stop);
        for cycle in 0..forks {
            fork(|| world.check(cycle));
        }
    });
    let time = start.elapsed();
    let rounds = rounds.into_inner();
    println!("{forks} forks in {time:?}, {rounds} rounds of the other threads");
    assert!(rounds > 0);
    for arena in [&world.repeated, &world.numbered, &world.wiped, &world.zeroes] {
        assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(arena));
    }
}
