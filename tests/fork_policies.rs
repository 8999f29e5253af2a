//! What children get of arenas that they do not inherit.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ArenaBuilder, ErrorKind, Heap, OnFork, SparseArray, Template, page_size};
use support::fork::{drop_copy, fork, status_of_fork};
use support::{
    arena_rss, assert_success, discard, in_child, load, numbered_pages, read_into, reset, stderr,
    store,
};

const CHUNK: usize = 2 << 20;

fn wiped(len: usize) -> ArenaBuilder<'static> {
    Arena::builder(len).name("scratch").on_fork(OnFork::Wipe)
}

fn forbidden(len: usize) -> ArenaBuilder<'static> {
    Arena::builder(len).name("secret").on_fork(OnFork::Forbid)
}

#[test]
fn a_wiped_arena_is_as_new() {
    assert_success(&in_child("a_wiped_arena_is_as_new", "fork", || {
        let budget = 600 * page_size();
        let template = Template::repeat(&0x55u8).unwrap();
        let arena = wiped(1 << 40).template(template).budget(budget).limit(1 << 39);
        let arena = arena.reserve().unwrap();
        let inherited = Arena::builder(1 << 30).reserve().unwrap();
        store(&inherited, 5, 5);
        (0..400).for_each(|page| store(&arena, (1 << 33) + page * page_size(), 1));
        store(&arena, 0, 1);
        let before = (arena.stats(), arena.populated().collect::<Vec<_>>());
        fork(|| {
            let stats = arena.stats();
            assert_eq!((stats.resident_bytes, stats.lent_bytes, stats.faults), (0, 0, 0));
            assert_eq!((stats.peak_resident_bytes, stats.budget_left()), (0, Some(budget)));
            assert_eq!(stats.limit_bytes, 1 << 39);
            assert_eq!((arena.populated().count(), arena_rss(&arena)), (0, 0));
            assert_eq!(arena.measure().unwrap().resident_bytes, 0);
            assert_eq!((load(&arena, 0), load(&arena, 1 << 33)), (0x55, 0x55));
            // The whole budget is there again.
            reset(&arena);
            arena.populate(0..budget).unwrap();
            assert_eq!((arena.stats().resident_bytes, arena_rss(&arena)), (budget, budget));
            discard(&arena, 0..budget);
            store(&arena, 1 << 34, 2);
            fork(|| assert_eq!((load(&arena, 1 << 34), arena_rss(&arena)), (0x55, page_size())));
            assert_eq!((load(&inherited, 5), load(&inherited, 1 << 29)), (5, 0));
        });
        assert_eq!((arena.stats(), arena.populated().collect::<Vec<_>>()), before);
        assert_eq!((load(&arena, 0), load(&arena, (1 << 33) + 1)), (1, 0x55));
        assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
    }));
}

/// What the kernel fills by itself: chunks that were lent, the zero page, huge pages.
#[test]
fn what_was_lent_or_huge_is_wiped_too() {
    assert_success(&in_child("what_was_lent_or_huge_is_wiped_too", "fork", || {
        let arena = wiped(1 << 40).reserve().unwrap();
        // As many as may be lent, up to 50, every other chunk: each takes mappings.
        let lend = |arena: &Arena| {
            for chunk in 0..50 {
                let store = |page| store(arena, 2 * chunk * CHUNK + page * page_size(), 9);
                [3, 100, 300].into_iter().for_each(store);
            }
            arena.stats().lent_bytes
        };
        let lent = lend(&arena);
        assert!(lent > 0);
        arena.populate(1 << 30..(1 << 30) + 4 * CHUNK).unwrap();
        (0..4 * CHUNK).step_by(page_size()).for_each(|byte| store(&arena, (2 << 30) + byte, 9));
        assert_eq!(load(&arena, 3 << 30), 0);
        fork(|| {
            assert_eq!((arena.stats().lent_bytes, arena.populated().count()), (0, 0));
            for offset in [3 * page_size(), 1 << 30, 2 << 30, 3 << 30] {
                assert_eq!(load(&arena, offset), 0);
            }
            reset(&arena);
            // The mappings are to be had again.
            assert_eq!(lend(&arena), lent);
            let stats = arena.measure().unwrap();
            assert_eq!(stats.resident_bytes, arena_rss(&arena));
            fork(|| assert_eq!((load(&arena, 3 * page_size()), arena.populated().count()), (0, 1)));
            drop_copy(&arena);
            let fresh = wiped(1 << 40).reserve().unwrap();
            assert_eq!(lend(&fresh), lent);
        });
        assert_eq!((load(&arena, 3 * page_size()), load(&arena, 2 << 30)), (9, 9));
        assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(&arena));
    }));
}

#[test]
fn a_wiped_arena_resets_in_place() {
    assert_success(&in_child("a_wiped_arena_resets_in_place", "fork", || {
        let arena = wiped(1 << 30).template(numbered_pages()).keep_resident(1 << 20);
        let arena = arena.reserve().unwrap();
        arena.populate(0..1 << 20).unwrap();
        store(&arena, page_size(), 0xee);
        fork(|| {
            reset(&arena);
            assert_eq!(arena.stats().resident_bytes, 0);
            arena.populate(0..2 * page_size()).unwrap();
            store(&arena, page_size(), 0xdd);
            reset(&arena);
            assert_eq!((load(&arena, page_size()), load(&arena, page_size() + 2)), (0, 1));
            assert_eq!(arena.stats().resident_bytes, 2 * page_size());
        });
        assert_eq!(load(&arena, page_size()), 0xee);
    }));
}

#[test]
fn a_forbidden_arena_is_not_to_be_had() {
    assert_success(&in_child("a_forbidden_arena_is_not_to_be_had", "fork", || {
        let arena = forbidden(1 << 40).reserve().unwrap();
        (0..100).for_each(|page| store(&arena, page * page_size(), 1));
        let refused = |arena: Arena| {
            let kinds = [arena.populate(0..page_size()), arena.set_limit(1 << 20)];
            for refused in kinds {
                assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotInherited);
            }
            // Nothing is there, so there is nothing to refuse.
            assert_eq!((arena.limit(), arena.populated().count(), arena_rss(&arena)), (0, 0, 0));
            assert_eq!(arena.measure().unwrap().resident_bytes, 0);
            discard(&arena, 0..arena.len());
            reset(&arena);
            // System calls cannot touch it either.
            let error = read_into(&arena, 0, b"x").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
            assert_eq!(Heap::new(arena).unwrap_err().kind(), ErrorKind::NotInherited);
            let own = forbidden(1 << 30).reserve().unwrap();
            store(&own, 0, 1);
        };
        fork(|| {
            let grandchild = || status_of_fork(|| _ = arena.populate(0..1).unwrap_err());
            assert_eq!(grandchild(), 0);
            refused(arena);
        });
    }));
}

#[test]
fn touching_a_forbidden_arena_is_a_violation() {
    let name = "touching_a_forbidden_arena_is_a_violation";
    let run = |role: &str, touch: fn(&Arena)| {
        let output = in_child(name, role, || {
            let arena = forbidden(1 << 30).reserve().unwrap();
            store(&arena, 8, 1);
            let status = status_of_fork(|| touch(&arena));
            assert_eq!(
                (libc::WIFSIGNALED(status), libc::WTERMSIG(status)),
                (true, support::fault_signal())
            );
            assert_eq!(load(&arena, 8), 1);
        });
        assert!(output.status.success(), "{}", support::text(&output));
        stderr(&output)
    };
    let line = |access: &str, offset: usize| {
        format!(
            "lacuna: arena \"secret\": {access} at offset {offset}: a forked child must not touch \
             this arena\n"
        )
    };
    let reads = run("read", |arena| assert_eq!(load(arena, 8), 0));
    assert_eq!(reads, line("read", 8));
    assert_eq!(run("write", |arena| store(arena, 1 << 29, 1)), line("write", 1 << 29));
    // Nor may the child's children.
    let touch = |arena: &Arena| fork_and_die(arena);
    assert_eq!(run("grandchild", touch), line("read", 0));
}

/// Has a child touch the arena, and dies of the same signal.
fn fork_and_die(arena: &Arena) {
    let status = status_of_fork(|| _ = load(arena, 0));
    // SAFETY: kills this process, without another line.
    unsafe {
        libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
        libc::raise(libc::WTERMSIG(status));
    }
}

#[test]
fn heaps_must_be_inherited() {
    for arena in [wiped(1 << 30), forbidden(1 << 30)] {
        let error = Heap::new(arena.reserve().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MustBeInherited);
        assert_eq!(
            error.to_string(),
            "make a heap: a heap needs an arena that forked children inherit"
        );
    }
}

#[test]
fn arrays_may_choose() {
    assert_success(&in_child("arrays_may_choose", "fork", || {
        let make = |what| SparseArray::filled_in(1 << 30, 7u64, |arena| arena.on_fork(what));
        let mut wiped = make(OnFork::Wipe).unwrap();
        let mut forbidden = make(OnFork::Forbid).unwrap();
        let mut inherited = make(OnFork::Inherit).unwrap();
        for array in [&mut wiped, &mut forbidden, &mut inherited] {
            array[1000] = 1;
            array[1 << 29] = 2;
        }
        fork(|| {
            assert_eq!((wiped[1000], inherited[1000], wiped[1 << 29]), (7, 1, 7));
            assert_eq!(inherited.populated().count(), 2);
            wiped[5] = 3;
            wiped.discard(0..6).unwrap();
            wiped.populate(0..1 << 10).unwrap();
            assert_eq!(wiped[5], 7);
            let refused = forbidden.populate(0..1).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotInherited);
            // Neither touches anything.
            forbidden.discard(0..1 << 20).unwrap();
            forbidden.discard(1000..1001).unwrap();
            forbidden.reset().unwrap();
        });
        for array in [&wiped, &forbidden, &inherited] {
            assert_eq!((array[1000], array[1 << 29], array[5]), (1, 2, 7));
        }
    }));
}
