//! Descriptors.

use crate::support::{arena_rss, discard, in_child, load, numbered_pages, store};
use crate::{MIB, World, assert_error, builder, on_both, set_limit, violation_on_both};
use lacuna::{Arena, Backend, Errno, Operation, page_size};

/// Runs `body` with no descriptor to be had.
fn without_descriptors<R>(body: impl FnOnce() -> R) -> R {
    let before = set_limit(libc::RLIMIT_NOFILE, 0);
    let result = body();
    set_limit(libc::RLIMIT_NOFILE, before);
    result
}

#[test]
fn the_first_arena_without_a_descriptor_is_an_error() {
    on_both("descriptors::the_first_arena_without_a_descriptor_is_an_error", |backend| {
        let make = || builder(backend, 1 << 40).template(numbered_pages()).reserve();
        let operation = match backend {
            Backend::Mprotect => Operation::OpenMemory,
            _ => Operation::Open,
        };
        for _ in 0..3 {
            let error = without_descriptors(make).unwrap_err();
            assert_error(&error, operation, Errno::EMFILE, "ulimit -n");
        }
        if backend == Backend::Mprotect {
            // Zeroes need none.
            let arena = without_descriptors(|| builder(backend, 1 << 40).reserve()).unwrap();
            without_descriptors(|| store(&arena, 1 << 39, 1));
        }
        assert_eq!(load(&make().unwrap(), 7 * page_size() + 2), 7);
    });
}

/// That is no reason for another backend, which would be there until the process ends.
#[test]
fn a_lack_of_descriptors_is_no_denial() {
    let name = "descriptors::a_lack_of_descriptors_is_no_denial";
    let output = in_child(name, "default", || {
        // SAFETY: no other thread is there that reads the environment.
        unsafe { std::env::remove_var("LACUNA_BACKEND") };
        let error = without_descriptors(|| Arena::builder(1 << 30).reserve()).unwrap_err();
        assert_error(&error, Operation::Open, Errno::EMFILE, "ulimit -n");
        Arena::builder(1 << 30).reserve().unwrap();
    });
    crate::assert_success(&output);
}

#[test]
fn arenas_and_heaps_go_on_without_descriptors() {
    on_both("descriptors::arenas_and_heaps_go_on_without_descriptors", |backend| {
        let world = World::new(backend, 128 * MIB);
        without_descriptors(|| {
            world.touch(0);
            world.touch(48 * MIB);
            assert_eq!(world.allocate(), 5);
            let error = world.zero.measure().unwrap_err();
            assert_error(&error, Operation::Measure, Errno::EMFILE, "ulimit -n");
            discard(&world.numbered, 0..MIB);
            world.zero.populate(64 * MIB..70 * MIB).unwrap();
            // Once there is one, each backend can have more arenas.
            builder(backend, 1 << 30).template(numbered_pages()).reserve().unwrap();
        });
        world.assert_exact();
    });
}

/// Lends the first chunk of an arena: a few pages of it are memory.
fn lend_first(arena: &Arena) {
    (0..8).for_each(|it| store(arena, (3 + 40 * it) * page_size(), 9));
    assert!(arena.stats().lent_bytes > MIB);
}

fn charged(arena: &Arena) -> usize {
    arena.stats().resident_bytes + arena.stats().lent_bytes
}

/// A chunk that is taken back in part asks the kernel which pages are there. Where it cannot, they stay
/// charged, and nothing is lost.
#[test]
fn taking_back_without_a_descriptor_is_an_error_and_loses_nothing() {
    let name = "descriptors::taking_back_without_a_descriptor_is_an_error_and_loses_nothing";
    on_both(name, |backend| {
        let arena = builder(backend, 1 << 30).reserve().unwrap();
        lend_first(&arena);
        without_descriptors(|| {
            // SAFETY: nobody has a reference into the arena.
            let error = unsafe { arena.discard(MIB..2 * MIB) }.unwrap_err();
            assert_error(&error, Operation::Discard, Errno::EMFILE, "ulimit -n");
            (0..8).for_each(|it| assert_eq!(load(&arena, (3 + 40 * it) * page_size()), 9));
            (0..8).for_each(|it| assert_eq!(load(&arena, (4 + 40 * it) * page_size()), 0));
            assert_eq!(charged(&arena), 2 * MIB);
        });
        assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(&arena));
        // Without userfaultfd it is lent as before.
        assert!(backend == Backend::Mprotect || charged(&arena) <= 16 * page_size());
        discard(&arena, 0..2 * MIB);
        lend_first(&arena);
        let error = without_descriptors(|| arena.set_limit(0)).unwrap_err();
        assert_error(&error, Operation::SetLimit, Errno::EMFILE, "ulimit -n");
        arena.set_limit(0).unwrap();
        arena.set_limit(1 << 30).unwrap();
        assert_eq!(load(&arena, 3 * page_size()), 9);
        discard(&arena, 0..2 * MIB);
        assert_eq!(arena.measure().unwrap().resident_bytes, 0);
        assert_eq!(arena.stats().lent_bytes, 0);
    });
}

/// With a descriptor the lent chunk would be recalled, and leave room.
#[test]
fn a_full_budget_without_a_descriptor_is_a_violation() {
    let name = "descriptors::a_full_budget_without_a_descriptor_is_a_violation";
    violation_on_both(name, "exceeds its budget of 8388608 resident bytes", |backend| {
        let arena = builder(backend, 1 << 30).budget(8 * MIB).reserve().unwrap();
        lend_first(&arena);
        without_descriptors(|| {
            for offset in (4 * MIB..12 * MIB).step_by(page_size()) {
                store(&arena, offset, 1);
            }
        });
    });
}

#[test]
fn a_full_budget_is_emptied_again_once_there_is_a_descriptor() {
    let name = "descriptors::a_full_budget_is_emptied_again_once_there_is_a_descriptor";
    on_both(name, |backend| {
        let arena = builder(backend, 1 << 30).budget(8 * MIB).reserve().unwrap();
        lend_first(&arena);
        without_descriptors(|| {
            // Populating fails where a touch would be a violation.
            arena.populate(4 * MIB..12 * MIB).unwrap_err();
        });
        arena.measure().unwrap();
        discard(&arena, 4 * MIB..6 * MIB);
        arena.populate(4 * MIB..10 * MIB).unwrap();
        assert_eq!(load(&arena, 3 * page_size()), 9);
    });
}
