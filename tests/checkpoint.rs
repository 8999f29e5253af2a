//! Checkpoints: what was written since is told exactly, and coming back is exact too, however it was written
//! and whatever became of the pages.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, ErrorKind, Template, Tracking, Window};
use std::collections::BTreeSet;
use support::tracked::{assert_measured, both, builder, rollback, written};
use support::{
    Rng, Watchdog, arena_rss, bytes, discard, load, noise, numbered_pages, page, read_into, store,
};

const CHUNK: usize = 2 << 20;

#[test]
fn random_writes_are_exactly_those() {
    let _watchdog = Watchdog::new("random_writes_are_exactly_those", 200);
    both(|tracking| {
        for huge in [false, true] {
            let pages = (512 << 20) / page();
            let arena = builder(pages * page(), tracking).huge_pages(huge).reserve().unwrap();
            arena.populate(0..arena.len() / 2).unwrap();
            arena.checkpoint().unwrap();
            assert_eq!(written(&arena), []);
            let mut rng = Rng(7);
            let mut model = BTreeSet::new();
            for _ in 0..100_000 {
                let at = rng.below(pages);
                store(&arena, at * page() + rng.below(page()), 1);
                model.insert(at);
                let read = rng.below(pages);
                load(&arena, read * page());
            }
            let model: Vec<usize> = model.into_iter().collect();
            assert!(written(&arena) == model, "{tracking:?}, huge pages {huge}");
            assert_measured(&arena);
            rollback(&arena);
            assert_eq!(written(&arena), []);
            assert_eq!(arena.stats().resident_bytes, arena.len() / 2);
            assert_measured(&arena);
            for at in model.iter().step_by(97) {
                assert!(bytes(&arena, at * page()..(at + 1) * page()).iter().all(|it| *it == 0));
            }
        }
    });
}

#[test]
fn comes_back_many_times() {
    both(|tracking| {
        let content = noise(64 * page(), 3);
        let template = Template::bytes(&content).unwrap();
        let arena = builder(4 * CHUNK, tracking).template(template).reserve().unwrap();
        for at in 0..20 {
            store(&arena, at * page() + 9, at as u8);
        }
        store(&arena, 3 * CHUNK, 77);
        let before = bytes(&arena, 0..64 * page());
        discard(&arena, 50 * page()..64 * page());
        arena.checkpoint().unwrap();
        let mut rng = Rng(1);
        for round in 0..30 {
            for _ in 0..rng.below(50) {
                store(&arena, rng.below(4 * CHUNK), round);
            }
            // The same in each round.
            for at in [2, 3, 40, 60, 700, 1600] {
                store(&arena, at * page() + 1, round ^ 0x55);
            }
            if round % 3 == 0 {
                discard(&arena, 10 * page()..30 * page());
            }
            if round % 7 == 6 {
                assert!(written(&arena).contains(&700));
            }
            rollback(&arena);
            assert!(bytes(&arena, 0..64 * page()) == before, "round {round}");
            assert_eq!((load(&arena, 3 * CHUNK), load(&arena, 3 * CHUNK + page())), (77, 0));
            assert_eq!((load(&arena, 700 * page() + 1), load(&arena, 1600 * page() + 1)), (0, 0));
            assert_measured(&arena);
        }
    });
}

#[test]
fn hot_pages_cost_no_fault_and_are_told_exactly() {
    both(|tracking| {
        let arena = builder(16 * CHUNK, tracking).reserve().unwrap();
        arena.populate(0..8 * CHUNK).unwrap();
        arena.checkpoint().unwrap();
        let write = || (0..64).for_each(|at| store(&arena, at * 91 * page(), 1));
        for _ in 0..3 {
            write();
            rollback(&arena);
        }
        let faults = arena.stats().faults;
        for _ in 0..5 {
            write();
            rollback(&arena);
            (0..64).for_each(|at| assert_eq!(load(&arena, at * 91 * page()), 0));
        }
        assert_eq!(arena.stats().faults, faults, "hot pages fault");
        // Some of them, one of them with what it held, which is not seen this once.
        store(&arena, 91 * page(), 1);
        store(&arena, 2 * 91 * page(), 0);
        assert_eq!(written(&arena), [91]);
        store(&arena, 3 * 91 * page(), 0);
        assert_eq!(written(&arena), [91, 3 * 91]);
        rollback(&arena);
        for _ in 0..4 {
            store(&arena, 2 * 91 * page(), 0);
            assert_eq!(written(&arena), [2 * 91]);
            rollback(&arena);
            assert_eq!(written(&arena), []);
        }
    });
}

#[test]
fn a_hot_page_that_cools_down_is_watched_again() {
    both(|tracking| {
        let arena = builder(CHUNK, tracking).window(Window::Pages(1)).reserve().unwrap();
        store(&arena, 0, 9);
        arena.checkpoint().unwrap();
        for round in 1..20u8 {
            if round % 5 != 0 {
                store(&arena, 0, round);
                store(&arena, 8 * page(), round);
            }
            rollback(&arena);
            assert_eq!((load(&arena, 0), load(&arena, 8 * page())), (9, 0), "round {round}");
        }
        store(&arena, 0, 1);
        store(&arena, 8 * page(), 1);
        assert_eq!(written(&arena), [0, 8]);
    });
}

#[test]
fn reading_and_windows_do_not_count() {
    both(|tracking| {
        let arena = builder(64 * CHUNK, tracking).window(Window::Pages(16)).reserve().unwrap();
        load(&arena, 5 * page());
        arena.checkpoint().unwrap();
        load(&arena, 40 * page());
        load(&arena, 4 * CHUNK);
        assert_eq!(written(&arena), []);
        // One of a window's pages; and one that showed the kernel's zero page.
        store(&arena, 8 * CHUNK + 3 * page(), 1);
        store(&arena, 5 * page(), 1);
        assert_eq!(written(&arena), [5, 8 * CHUNK / page() + 3]);
        rollback(&arena);
        assert_eq!((load(&arena, 5 * page()), load(&arena, 8 * CHUNK + 3 * page())), (0, 0));
        assert_measured(&arena);
    });
}

/// A page that is replayed alone comes as one that is faulted in to be written does, but nobody writes it.
#[test]
fn what_is_replayed_is_not_written() {
    both(|tracking| {
        let recorded = builder(CHUNK, tracking).reserve().unwrap();
        recorded.start_recording(100).unwrap();
        [0, 2, 4].into_iter().for_each(|index| store(&recorded, index * page(), 1));
        let trace = recorded.stop_recording().unwrap();
        let arena = builder(CHUNK, tracking).reserve().unwrap();
        arena.checkpoint().unwrap();
        assert_eq!(arena.replay(&trace).unwrap().present_bytes, 3 * page());
        assert_eq!(written(&arena), []);
        let faults = arena.stats().faults;
        store(&arena, 2 * page(), 1);
        store(&arena, 9 * page(), 1);
        assert_eq!(written(&arena), [2, 9]);
        // One to lift the protection of what was replayed, and one that does both.
        let signals = if tracking == Tracking::Signal { 2 } else { 1 };
        assert_eq!(arena.stats().faults, faults + signals);
        rollback(&arena);
        assert_eq!((load(&arena, 2 * page()), load(&arena, 9 * page())), (0, 0));
    });
}

#[test]
fn discarded_pages_come_back_and_count() {
    both(|tracking| {
        let template = numbered_pages();
        let arena = builder(8 * CHUNK, tracking).template(template).reserve().unwrap();
        store(&arena, 9, 7);
        store(&arena, CHUNK + 9, 8);
        arena.checkpoint().unwrap();
        store(&arena, 4 * CHUNK, 9);
        discard(&arena, 0..arena.len());
        assert_eq!(written(&arena), [0, CHUNK / page()]);
        assert_eq!((load(&arena, 9), load(&arena, CHUNK + 9)), (0, 0));
        rollback(&arena);
        assert_eq!((load(&arena, 9), load(&arena, CHUNK + 9)), (7, 8));
        assert_eq!(load(&arena, CHUNK + 2), (CHUNK / page()) as u8);
        assert_eq!(written(&arena), []);
        // SAFETY: nobody holds a reference.
        unsafe { arena.reset() }.unwrap();
        rollback(&arena);
        assert_eq!((load(&arena, 9), load(&arena, CHUNK + 9)), (7, 8));
        assert_measured(&arena);
    });
}

#[test]
fn a_checkpoint_replaces_the_one_before() {
    both(|tracking| {
        let arena = builder(8 * CHUNK, tracking).reserve().unwrap();
        arena.populate(0..CHUNK).unwrap();
        arena.checkpoint().unwrap();
        for round in 1..6u8 {
            store(&arena, 3 * page(), round);
            store(&arena, usize::from(round) * CHUNK, round);
            discard(&arena, usize::from(round) * page() * 20..usize::from(round) * page() * 21);
            arena.checkpoint().unwrap();
            assert_eq!(written(&arena), []);
            store(&arena, 3 * page(), 99);
            store(&arena, 6 * CHUNK, 99);
            rollback(&arena);
            assert_eq!(load(&arena, 3 * page()), round);
            assert_eq!(load(&arena, usize::from(round) * CHUNK), round);
            assert_eq!(load(&arena, 6 * CHUNK), 0);
            discard(&arena, 6 * CHUNK..7 * CHUNK);
        }
        assert_measured(&arena);
        assert!(arena.stats().checkpoint_bytes <= arena.stats().resident_bytes);
        arena.forget_checkpoint();
        assert_eq!(arena.stats().checkpoint_bytes, 0);
        store(&arena, 3 * page(), 98);
        assert_eq!(load(&arena, 3 * page()), 98);
        arena.populate(4 * CHUNK..6 * CHUNK).unwrap();
        arena.checkpoint().unwrap();
        store(&arena, 3 * page(), 97);
        rollback(&arena);
        assert_eq!(load(&arena, 3 * page()), 98);
        assert_measured(&arena);
    });
}

/// A zero page needs no memory in a checkpoint.
#[test]
fn zero_pages_cost_nothing() {
    both(|tracking| {
        let arena = builder(CHUNK, tracking).window(Window::Pages(512)).reserve().unwrap();
        load(&arena, 0);
        assert_eq!(arena.stats().lent_bytes, CHUNK);
        arena.checkpoint().unwrap();
        assert_eq!((arena.stats().checkpoint_bytes, arena_rss(&arena)), (0, 0));
        (0..512).for_each(|at| store(&arena, at * page(), 1));
        assert_eq!(written(&arena).len(), 512);
        rollback(&arena);
        (0..512).for_each(|at| assert_eq!(load(&arena, at * page()), 0));
        assert_measured(&arena);
    });
}

#[test]
fn lent_chunks_are_recalled_and_none_is_lent() {
    both(|tracking| {
        let arena = builder(1 << 30, tracking).reserve().unwrap();
        for at in [3, 30, 300] {
            store(&arena, 20 * CHUNK + at * page(), at as u8);
        }
        assert!(arena.stats().lent_bytes > 4 * page(), "nothing was lent");
        arena.checkpoint().unwrap();
        assert!(arena.stats().lent_bytes + arena.stats().resident_bytes <= 4 * page());
        for at in [4, 40, 400] {
            store(&arena, 20 * CHUNK + at * page(), 1);
            store(&arena, 30 * CHUNK + at * page(), 1);
        }
        let pages = [20, 30].map(|chunk| [4, 40, 400].map(|at| chunk * CHUNK / page() + at));
        assert_eq!(written(&arena), pages.concat());
        rollback(&arena);
        assert_eq!(load(&arena, 20 * CHUNK + 300 * page()), 300usize as u8);
        assert_eq!(load(&arena, 20 * CHUNK + 400 * page()), 0);
        arena.forget_checkpoint();
        for at in [5, 50, 500] {
            store(&arena, 40 * CHUNK + at * page(), 1);
        }
        assert!(arena.stats().lent_bytes > 100 * page(), "nothing is lent any more");
        assert_measured(&arena);
    });
}

#[test]
fn system_calls_are_seen() {
    both(|tracking| {
        let arena = builder(4 * CHUNK, tracking).reserve().unwrap();
        arena.populate(0..CHUNK).unwrap();
        arena.checkpoint().unwrap();
        let read = read_into(&arena, 5 * page(), &[1; 100]);
        if tracking == Tracking::Signal {
            assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EFAULT));
            arena.populate(5 * page()..6 * page()).unwrap();
            assert_eq!(read_into(&arena, 5 * page(), &[1; 100]).unwrap(), 100);
        } else {
            assert_eq!(read.unwrap(), 100);
        }
        // What was not there.
        arena.populate(2 * CHUNK..2 * CHUNK + 2 * page()).unwrap();
        assert_eq!(read_into(&arena, 2 * CHUNK, &[1; 100]).unwrap(), 100);
        let mut pages = vec![5, 2 * CHUNK / page()];
        if tracking == Tracking::Signal {
            pages.push(2 * CHUNK / page() + 1);
        }
        assert_eq!(written(&arena), pages);
        rollback(&arena);
        assert_eq!((load(&arena, 5 * page()), load(&arena, 2 * CHUNK)), (0, 0));
    });
}

#[test]
fn a_budget_is_needed_for_what_was_discarded() {
    both(|tracking| {
        let budget = 16 * page();
        let arena =
            builder(CHUNK, tracking).window(Window::Pages(1)).budget(budget).reserve().unwrap();
        (0..12).for_each(|at| store(&arena, at * page(), 7));
        arena.checkpoint().unwrap();
        discard(&arena, 0..8 * page());
        (20..32).for_each(|at| store(&arena, at * page(), 1));
        assert_eq!(arena.stats().budget_left(), Some(0));
        // What is new goes first.
        rollback(&arena);
        assert_eq!(arena.stats().resident_bytes, 12 * page());
        (0..12).for_each(|at| assert_eq!(load(&arena, at * page()), 7));
        // Pages that stay, being hot, may take it.
        for _ in 0..2 {
            (20..24).for_each(|at| store(&arena, at * page(), 1));
            rollback(&arena);
        }
        assert_eq!(arena.stats().budget_left(), Some(0));
        (20..24).for_each(|at| assert_eq!(load(&arena, at * page()), 0));
        discard(&arena, 0..4 * page());
        (30..34).for_each(|at| store(&arena, at * page(), 1));
        rollback(&arena);
        (0..12).for_each(|at| assert_eq!(load(&arena, at * page()), 7));
        assert_measured(&arena);
    });
}

#[test]
fn one_that_failed_half_way_can_be_repeated() {
    both(|tracking| {
        let builder = builder(100 * CHUNK, tracking).window(Window::Pages(1));
        let arena = builder.budget(16 * page()).reserve().unwrap();
        // A page in each of many chunks; between them are those that come later.
        let (held, new) = (|at: usize| 8 * at * CHUNK, |at: usize| (8 * at + 4) * CHUNK);
        (0..12).for_each(|at| store(&arena, held(at), 7));
        arena.checkpoint().unwrap();
        let round = || {
            (0..12).filter(|at| at % 3 != 0).for_each(|at| {
                discard(&arena, held(at)..held(at) + page());
            });
            (0..8).for_each(|at| store(&arena, new(at), 1));
            (0..12).step_by(3).for_each(|at| store(&arena, held(at) + 1, 1));
        };
        round();
        rollback(&arena);
        round();
        // The new ones are hot now, and stay.
        // SAFETY: nobody has a reference into the arena.
        let error = unsafe { arena.rollback() }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BudgetExhausted);
        (0..8).for_each(|at| discard(&arena, new(at)..new(at) + page()));
        rollback(&arena);
        assert_eq!(written(&arena), []);
        (0..12).for_each(|at| {
            assert_eq!((load(&arena, held(at)), load(&arena, held(at) + 1)), (7, 0));
        });
        assert_measured(&arena);
        // Each is watched.
        (0..12).for_each(|at| store(&arena, held(at), 1));
        assert_eq!(written(&arena), Vec::from_iter((0..12).map(|at| held(at) / page())));
        rollback(&arena);
        (0..12).for_each(|at| assert_eq!(load(&arena, held(at)), 7));
        (0..4).for_each(|at| assert_eq!(load(&arena, new(at)), 0));
    });
}

#[test]
fn without_a_checkpoint_it_is_an_error() {
    both(|tracking| {
        let arena = builder(CHUNK, tracking).reserve().unwrap();
        assert_eq!(arena.tracking(), tracking);
        arena.forget_checkpoint();
        assert_eq!(arena.written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
        // SAFETY: it does nothing.
        let error = unsafe { arena.rollback() }.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoCheckpoint);
        assert!(error.hint().is_some());
    });
    let arena = Arena::builder(CHUNK).backend(Backend::Mprotect).reserve().unwrap();
    assert_eq!(arena.checkpoint().unwrap_err().kind(), ErrorKind::NeedsUserfaultfd);
    assert_eq!(arena.written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
}
