//! Coming back to the template, with pages that keep their memory and without.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, SparseArray, Template, page_size};
use support::{
    arena_rss, assert_killed, bytes, discard, fault_signal, file_of, in_child, load, noise,
    numbered_pages, reset, store,
};

const LEN: usize = 4 << 20;

/// Whole pages are restored, from every kind of template, across its end.
#[test]
fn kept_pages_hold_the_template_again() {
    let image = noise(LEN / 2 + 100, 3);
    let templates = [
        Template::zero(),
        Template::repeat(&[1u8, 2, 3]).unwrap(),
        Template::bytes(&image).unwrap(),
        numbered_pages(),
    ];
    for template in templates {
        let fresh = Arena::builder(LEN).template(template.clone()).reserve().unwrap();
        let want = bytes(&fresh, 0..LEN);
        for keep in [page_size(), 300 * page_size(), LEN / 2 + page_size(), LEN, usize::MAX] {
            let builder = Arena::builder(LEN).template(template.clone()).lending(false);
            let arena = builder.keep_resident(keep).reserve().unwrap();
            for round in 0..3 {
                for offset in (0..LEN).step_by(7 * page_size() / 2) {
                    store(&arena, offset, !want[offset]);
                }
                let before = arena.stats();
                reset(&arena);
                let kept = arena.stats().resident_bytes;
                assert_eq!(kept, before.resident_bytes.min(keep - keep % page_size()));
                assert_eq!(arena_rss(&arena), kept, "round {round}");
                assert!(bytes(&arena, 0..LEN) == want, "keep {keep}, round {round}: {template:?}");
                discard(&arena, LEN / 4..LEN / 2);
            }
        }
    }
}

#[test]
fn kept_pages_do_not_fault_again() {
    let template = Template::bytes(noise(LEN, 5)).unwrap();
    let arena = Arena::builder(LEN).template(template).keep_resident(1 << 20).reserve().unwrap();
    let touch = || (0..64).for_each(|index| store(&arena, index * (LEN / 64), 1));
    touch();
    let faults = arena.stats().faults;
    for _ in 0..10 {
        reset(&arena);
        touch();
    }
    assert_eq!(arena.stats().faults, faults);
    assert_eq!(arena.stats().resident_bytes, 64 * page_size());
}

/// Pages that the kernel fills by itself may hold anything: they are given back.
#[test]
fn lent_pages_are_not_kept() {
    let arena = Arena::builder(LEN).keep_resident(LEN).reserve().unwrap();
    for page in [3, 9, 40, 77] {
        store(&arena, page * page_size(), 1);
    }
    // Zeroes that were only read, and one written behind our back.
    for page in [600, 601, 700] {
        assert_eq!(load(&arena, page * page_size()), 0);
    }
    store(&arena, 601 * page_size(), 1);
    assert!(arena.stats().lent_bytes > 512 * page_size());
    reset(&arena);
    assert_eq!(arena.stats().lent_bytes, 0);
    assert!(bytes(&arena, 0..LEN).iter().all(|&byte| byte == 0));
}

/// A lower limit and a reset make touching what lies past it a violation, as ever.
#[test]
fn pages_past_the_limit_are_not_kept() {
    let output = in_child("pages_past_the_limit_are_not_kept", "keeper", || {
        let arena = Arena::builder(LEN).keep_resident(LEN).reserve().unwrap();
        arena.populate(0..2 * page_size()).unwrap();
        arena.set_limit(page_size()).unwrap();
        reset(&arena);
        assert_eq!(arena.stats().resident_bytes, page_size());
        store(&arena, 0, 1);
        store(&arena, page_size(), 1);
    });
    assert_killed(&output, fault_signal());
}

/// A file can be cut short while its bytes are copied, which only a system call survives.
#[test]
fn pages_of_a_file_are_not_kept() {
    let template = Template::file(&file_of(&noise(LEN, 7))).unwrap();
    let arena = Arena::builder(LEN).template(template).keep_resident(LEN).reserve().unwrap();
    store(&arena, 0, 1);
    reset(&arena);
    assert_eq!(arena.stats().resident_bytes, 0);
}

#[test]
fn an_array_comes_back_to_its_value() {
    let mut array = SparseArray::filled_in(1 << 30, 7u32, |arena| arena.keep_resident(1 << 20));
    let array = array.as_mut().unwrap();
    for round in 0..3 {
        array[5] = round;
        array[1 << 29] = round;
        array.reset().unwrap();
        assert_eq!((array[5], array[1 << 29]), (7, 7));
        assert_eq!(array.arena().stats().faults, 2);
    }
}

/// The last chunk may be shorter than others.
#[test]
fn a_short_arena_is_reset_whole() {
    for pages in [1, 511, 512, 513] {
        let builder = Arena::builder(pages * page_size()).keep_resident(usize::MAX);
        let arena = builder.reserve().unwrap();
        store(&arena, (pages - 1) * page_size(), 1);
        reset(&arena);
        assert_eq!(load(&arena, (pages - 1) * page_size()), 0);
    }
}
