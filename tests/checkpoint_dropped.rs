//! Pages that somebody drops behind the arena's back while there is a checkpoint.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Tracking};
use std::sync::Barrier;
use support::tracked::{both, builder, rollback, written};
use support::{drop_behind, load, page, store};

const PAGES: usize = 64;

fn filled(tracking: Tracking) -> Arena {
    let arena = builder(1 << 30, tracking).reserve().unwrap();
    (0..PAGES).for_each(|at| store(&arena, at * page(), 7));
    arena
}

/// They are written as ever, and known to be.
#[test]
fn they_can_be_written() {
    both(|tracking| {
        let arena = filled(tracking);
        arena.checkpoint().unwrap();
        for at in [3, 9] {
            drop_behind(&arena, at * page()..(at + 1) * page());
            store(&arena, at * page() + 1, 5);
            assert_eq!(load(&arena, at * page() + 1), 5);
        }
        assert_eq!(written(&arena), [3, 9]);
        rollback(&arena);
        (0..PAGES).filter(|at| ![3, 9].contains(at)).for_each(|at| {
            assert_eq!(load(&arena, at * page()), 7);
        });
    });
}

/// Two threads meet at such a page, over and over.
#[test]
fn threads_write_one_at_once() {
    both(|tracking| {
        let arena = filled(tracking);
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            for own in 1..=2 {
                let (arena, barrier) = (&arena, &barrier);
                scope.spawn(move || {
                    for at in (0..2000).map(|round| round % PAGES * page()) {
                        if own == 1 {
                            arena.checkpoint().unwrap();
                            drop_behind(arena, at..at + page());
                        }
                        barrier.wait();
                        store(arena, at + own, 1);
                        assert_eq!(load(arena, at + own), 1);
                        barrier.wait();
                    }
                });
            }
        });
    });
}
