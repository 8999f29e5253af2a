//! Images that arenas have in common, in chunks that are lent to the kernel.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Template, page_size};
use std::ptr;
use support::fork::fork;
use support::{
    arena_memory, arena_rss, assert_success, bytes, discard, drop_behind, in_child, load, noise,
    reset, store,
};

fn shared(bytes: &[u8]) -> Template {
    Template::bytes(bytes).unwrap().shared().unwrap()
}

fn arena(template: &Template) -> Arena {
    Arena::builder(16 << 20).template(template.clone()).reserve().unwrap()
}

/// Chunks that are touched here and there are the kernel's to fill, with the image, and stay so.
#[test]
fn lent_chunks_come_back_to_the_image() {
    let image = noise(8 << 20, 9);
    // Keeping nothing, it lends at once; else once others than the pages that it keeps are needed.
    for keep in [0, 64 * page_size()] {
        let builder = Arena::builder(16 << 20).template(shared(&image)).keep_resident(keep);
        let arena = builder.reserve().unwrap();
        let mut rng = support::Rng(7);
        let mut faults = 0;
        for round in 0..1200 {
            let pages: Vec<_> = (0..24).map(|_| rng.below(2048)).collect();
            for page in &pages {
                let at = page * page_size() + round % page_size();
                store(&arena, at, !image[at]);
            }
            let stats = arena.stats();
            if round % 97 == 0 {
                let measured = arena.measure().unwrap();
                assert_eq!(measured.resident_bytes, arena_memory(&arena));
            }
            assert!(stats.resident_bytes <= keep + 24 * page_size());
            reset(&arena);
            for page in pages {
                let at = page * page_size() + round % page_size();
                assert_eq!(load(&arena, at), image[at], "round {round}, page {page}");
            }
            if round == 100 {
                assert_eq!(arena.stats().lent_bytes, image.len(), "keep {keep}");
                faults = arena.stats().faults;
            }
            if round == 200 {
                assert_eq!(arena.stats().faults, faults, "keep {keep}");
            }
        }
        // It has looked anew whether keeping is better.
        assert!(keep == 0 || arena.stats().faults > faults);
        reset(&arena);
        assert!(bytes(&arena, 0..image.len()) == image);
        assert_eq!(arena.stats().resident_bytes, 0);
        discard(&arena, 0..arena.len());
        assert_eq!((arena.stats().lent_bytes, arena_rss(&arena)), (0, 0));
        assert!(bytes(&arena, 0..image.len()) == image);
    }
}

/// A child gets no page tables of what its parent has only read.
#[test]
fn children_that_only_read_take_no_memory() {
    assert_success(&in_child("children_that_only_read_take_no_memory", "shared_lending", || {
        let image = noise(8 << 20, 9);
        let template = shared(&image);
        let (common, lent) = (arena(&template), arena(&template));
        assert!(bytes(&common, 0..image.len()) == image);
        (0..2048).step_by(37).for_each(|page| _ = load(&lent, page * page_size()));
        assert_eq!(lent.stats().lent_bytes, image.len());
        fork(|| {
            for arena in [&common, &lent] {
                let before = arena.stats();
                assert!(bytes(arena, 0..image.len()) == image);
                assert_eq!((arena.stats().lent_bytes, arena_memory(arena)), (image.len(), 0));
                // Common pages are shown again, by a fault each; what is lent is the kernel's to show.
                if ptr::eq(arena, &raw const lent) {
                    assert_eq!(arena.stats().faults, before.faults);
                }
                store(arena, 5 * page_size(), 1);
                let stats = arena.measure().unwrap();
                assert_eq!(stats.resident_bytes, page_size());
                assert_eq!(arena_memory(arena), page_size());
            }
        });
    }));
}

/// What the kernel has dropped, as it does where memory is scarce, is common again if it is read.
#[test]
fn dropped_pages_are_common_again() {
    let image = noise(8 << 20, 9);
    let builder = Arena::builder(16 << 20).backend(Backend::Userfaultfd);
    let arena = builder.template(shared(&image)).reserve().unwrap();
    let drop_all = || drop_behind(&arena, 0..2 << 20);
    assert!(bytes(&arena, 0..2 << 20) == image[..2 << 20]);
    drop_all();
    assert!(bytes(&arena, 0..2 << 20) == image[..2 << 20]);
    let stats = arena.stats();
    assert_eq!((stats.lent_bytes, stats.resident_bytes, arena_memory(&arena)), (2 << 20, 0, 0));
    drop_all();
    store(&arena, 3 * page_size(), !image[3 * page_size()]);
    assert_eq!(arena.stats().lent_bytes, 2 << 20);
    assert_eq!(arena.measure().unwrap().resident_bytes, page_size());
    assert_eq!(arena_memory(&arena), page_size());
    assert_eq!(load(&arena, 3 * page_size()), !image[3 * page_size()]);
}

/// Where the image is mostly zeroes, the kernel would give it pages that nobody is charged for.
#[test]
fn chunks_with_many_holes_are_not_lent() {
    for (holes, is_lent) in [(0, true), (50, true), (80, false), (500, false)] {
        let mut image = noise(2 << 20, 9);
        image[(2 << 20) - holes * page_size()..].fill(0);
        let arena = arena(&shared(&image));
        for page in [3, 90, 200, 300] {
            store(&arena, page * page_size(), 1);
        }
        // Tuned to be found out sooner, more holes are allowed.
        let lent = arena.stats().lent_bytes > 0;
        assert!(lent == is_lent || cfg!(lacuna_shrunk), "{holes} holes");
    }
}

/// A budget that is needed elsewhere, and a lower limit, take lent chunks back.
#[test]
fn lent_chunks_are_recalled() {
    let image = noise(8 << 20, 9);
    let builder = Arena::builder(16 << 20).template(shared(&image)).budget(4 << 20);
    let arena = builder.reserve().unwrap();
    for page in [3, 90, 200, 300] {
        store(&arena, page * page_size(), !image[page * page_size()]);
    }
    assert_eq!(arena.stats().lent_bytes, (2 << 20) - page_size());
    arena.populate(4 << 20..8 << 20).unwrap_err();
    arena.populate(4 << 20..(8 << 20) - 4 * page_size()).unwrap();
    assert_eq!(arena.stats().budget_left(), Some(0));
    let stats = arena.measure().unwrap();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (4 << 20, 0));
    for page in [3, 90, 200, 300] {
        assert_eq!(load(&arena, page * page_size()), !image[page * page_size()]);
    }
    discard(&arena, 4 << 20..8 << 20);
    let start = |page: usize| page * page_size() + 1;
    assert!((0..512).all(|page| load(&arena, start(page)) == image[start(page)]));
    // Not lent any more, as it was recalled for the budget.
    arena.set_limit(1 << 20).unwrap();
    assert_eq!(load(&arena, 0), image[0]);
}
