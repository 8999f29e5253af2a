//! Stacks that lie in an arena, switched to by the program itself: they grow by faults, which the
//! handler resolves on the thread's alternate stack.

#![allow(missing_docs, reason = "a test")]

mod support;

use corosensei::stack::{Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use lacuna::{Arena, ErrorKind, Template, Window};
use std::ptr;
use support::{WINDOWS, assert_killed, assert_success, in_child};

const LEN: usize = 16 << 20;

/// A stack that begins at the end of an arena, which outlives it; what lies before the arena is its
/// guard.
struct ArenaStack(StackPointer);

impl ArenaStack {
    fn new(arena: &Arena) -> Self {
        assert_eq!(arena.len(), LEN);
        Self(StackPointer::new(arena.as_ptr().expose_provenance()).unwrap())
    }
}

// SAFETY: aligned to a chunk, within the arena, and arenas have a guard before them.
unsafe impl Stack for ArenaStack {
    fn base(&self) -> StackPointer {
        self.0.saturating_add(LEN)
    }

    fn limit(&self) -> StackPointer {
        self.0
    }
}

/// Recurses by `bytes` of stack, yielding at the lowest point; every frame is checked on the way up.
#[inline(never)]
fn deep(lowest: usize, level: usize, yielder: &Yielder<(), ()>) -> usize {
    let frame = std::hint::black_box([level; 100]);
    if frame.as_ptr().addr() > lowest {
        let levels = deep(lowest, level + 1, yielder);
        assert!(frame.iter().all(|word| *word == level));
        levels
    } else {
        yielder.suspend(());
        level
    }
}

fn run(arena: &Arena, bytes: usize) -> usize {
    let lowest = arena.as_ptr().addr() + LEN - bytes;
    let body = move |yielder: &Yielder<(), ()>, ()| deep(lowest, 0, yielder);
    let mut coroutine = Coroutine::with_stack(ArenaStack::new(arena), body);
    assert!(matches!(coroutine.resume(()), CoroutineResult::Yield(())));
    match coroutine.resume(()) {
        CoroutineResult::Return(levels) => levels,
        CoroutineResult::Yield(()) => panic!("it yields once"),
    }
}

#[test]
fn deep_recursion_grows_a_stack_in_an_arena() {
    for template in [None, Some(Template::repeat(&0xa5u8).unwrap())] {
        for window in WINDOWS {
            let builder = Arena::builder(LEN).window(window);
            let arena = match template.clone() {
                Some(template) => builder.template(template).reserve().unwrap(),
                None => builder.reserve().unwrap(),
            };
            assert!(run(&arena, 8 << 20) > 1000);
            let stats = arena.stats();
            assert!(stats.faults > 0 && stats.resident_bytes + stats.lent_bytes >= 8 << 20);
            // The same stack again, given back in between.
            support::discard(&arena, 0..LEN);
            assert!(run(&arena, 1 << 20) > 100);
        }
    }
}

#[test]
fn many_threads_run_coroutines() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for round in 1..20 {
                    let arena = Arena::builder(LEN).reserve().unwrap();
                    assert!(run(&arena, round * (512 << 10)) > 10);
                }
            });
        }
    });
}

/// Without an alternate stack the kernel would have to write the signal's frame to the very page that
/// is missing.
#[test]
fn without_an_alternate_stack_growing_is_deadly_and_told_before() {
    let output =
        in_child("without_an_alternate_stack_growing_is_deadly_and_told_before", "thread", || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let none = libc::stack_t {
                        ss_sp: ptr::null_mut(),
                        ss_flags: libc::SS_DISABLE,
                        ss_size: 0,
                    };
                    // SAFETY: the thread is not on its alternate stack.
                    assert_eq!(unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) }, 0);
                    let arena = Arena::builder(LEN).window(Window::Pages(1)).reserve().unwrap();
                    lacuna::check_thread().unwrap();
                    arena.populate(LEN - (64 << 10)..LEN).unwrap();
                    let body = |_: &Yielder<(), ()>, ()| lacuna::check_thread();
                    let mut asks = Coroutine::with_stack(ArenaStack::new(&arena), body);
                    let CoroutineResult::Return(Err(error)) = asks.resume(()) else {
                        panic!("it was not told");
                    };
                    assert_eq!(error.kind(), ErrorKind::NoAlternateStack);
                    drop(asks);
                    run(&arena, 1 << 20);
                });
            });
        });
    assert_killed(&output, libc::SIGSEGV);
    assert!(!support::stderr(&output).contains("panicked"), "{}", support::text(&output));
}

/// A stack that overflows runs into the arena's guard, not into its neighbours.
#[test]
fn an_overflow_dies_at_the_guard() {
    let name = "an_overflow_dies_at_the_guard";
    let output = in_child(name, "overflow", || {
        let arena = Arena::builder(LEN).reserve().unwrap();
        run(&arena, LEN + (1 << 20));
    });
    assert_killed(&output, libc::SIGSEGV);
    assert_success(&in_child(name, "almost", || {
        let arena = Arena::builder(LEN).reserve().unwrap();
        run(&arena, LEN - (64 << 10));
    }));
}
