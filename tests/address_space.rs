//! Arenas in the address space of the process, and what system calls see of them.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Errno, Template};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use support::{
    Rng, addresses, assert_success, bytes, file_of, in_child, load, noise, numbered_pages, page,
    read_into, store,
};

const TIB: usize = 1 << 40;
const CHUNK: usize = 2 << 20;

fn arena_of(len: usize, template: Template) -> Arena {
    Arena::builder(len).template(template).reserve().unwrap()
}

#[test]
fn reservations_of_64_tebibytes_work() {
    let arena = arena_of(64 * TIB, numbered_pages());
    for at in [0, TIB, 32 * TIB, 64 * TIB - page()] {
        let got = bytes(&arena, at..at + 8);
        assert_eq!(got, (((at / page()) as u64) << 16).to_ne_bytes());
    }
    assert_eq!(arena.populated().count(), 4);
}

#[test]
fn thousands_of_arenas_share_one_descriptor() {
    let name = "thousands_of_arenas_share_one_descriptor";
    assert_success(&in_child(name, "child", || {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        drop(arena_of(CHUNK, numbered_pages()));
        let mut arenas = vec![arena_of(TIB >> 10, Template::repeat(&0u8).unwrap())];
        let before = descriptors();
        for index in 1..3000u32 {
            arenas.push(arena_of(TIB >> 10, Template::repeat(&index).unwrap()));
        }
        assert_eq!(descriptors(), before);
        for (index, arena) in arenas.iter().enumerate() {
            assert_eq!(bytes(arena, CHUNK..CHUNK + 4), (index as u32).to_ne_bytes());
        }
        let mut rng = Rng(1);
        rng.shuffle(&mut arenas);
        arenas.truncate(10);
        for arena in &arenas {
            store(arena, 0, 1);
            assert_eq!(bytes(arena, 4..8), bytes(arena, CHUNK..CHUNK + 4));
        }
        assert_eq!(descriptors(), before);
    }));
}

#[test]
fn address_space_is_given_back() {
    let name = "address_space_is_given_back";
    assert_success(&in_child(name, "child", || {
        let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        drop(arena_of(64 * TIB, numbered_pages()));
        let before = mappings();
        for _ in 0..300 {
            let arena = arena_of(64 * TIB, numbered_pages());
            store(&arena, 64 * TIB - 1, 1);
        }
        assert!(mappings() <= before + 2, "{before} mappings became {}", mappings());
    }));
}

/// The lines of /proc/self/maps for what lies before, in and after an arena.
fn neighbourhood(arena: &Arena) -> Vec<(Range<usize>, String)> {
    let (start, end) = (arena.as_ptr().addr(), arena.as_ptr().addr() + arena.len());
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let lines = maps.lines().filter_map(|line| Some((addresses(line)?, line.to_owned())));
    lines.filter(|(range, _)| range.end >= start && range.start <= end).collect()
}

#[test]
fn arenas_lie_between_guards() {
    let name = "arenas_lie_between_guards";
    assert_success(&in_child(name, "child", || {
        let lens = [1, CHUNK - page(), CHUNK, CHUNK + 1, TIB];
        let arenas: Vec<_> = lens.map(|len| arena_of(len, Template::zero())).into();
        for arena in &arenas {
            assert_eq!(arena.as_ptr().addr() % CHUNK, 0);
            let around = neighbourhood(arena);
            let access: Vec<_> = around.iter().map(|(_, line)| line.split(' ').nth(1)).collect();
            match arena.backend() {
                Backend::Mprotect => assert!(access.iter().all(|it| *it == Some("---p"))),
                _ => assert_eq!(access, [Some("---p"), Some("rw-p"), Some("---p")], "{around:?}"),
            }
            assert!(around.iter().all(|(range, _)| range.len() >= page()), "{around:?}");
        }
    }));
}

#[test]
fn system_calls_see_populated_pages() {
    let arena = arena_of(TIB, Template::repeat(&7u8).unwrap());
    let at = CHUNK - 10;
    arena.populate(arena.covering(at..at + 20)).unwrap();
    assert_eq!(read_into(&arena, at, b"across a boundary!!!").unwrap(), 20);
    assert_eq!(bytes(&arena, at - 1..at + 21), b"\x07across a boundary!!!\x07");
}

#[test]
fn system_calls_see_pages_that_were_read() {
    let arena = arena_of(TIB, Template::zero());
    assert_eq!(load(&arena, CHUNK), 0);
    assert_eq!(read_into(&arena, CHUNK + 1, b"kernel").unwrap(), 6);
    assert_eq!(bytes(&arena, CHUNK..CHUNK + 8), b"\0kernel\0");
}

#[test]
fn system_calls_do_not_see_untouched_pages() {
    let arena = arena_of(TIB, Template::zero());
    let error = read_into(&arena, CHUNK, b"lost").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::EFAULT as i32));
    assert_eq!(arena.stats().faults, 0);
}

#[test]
fn a_file_that_is_read_goes_through_the_kernel_too() {
    let arena = arena_of(TIB, Template::zero());
    let content = noise(3 * page(), 9);
    arena.populate(0..3 * page()).unwrap();
    // SAFETY: the bytes are within the arena, present, and nobody else uses them.
    let buffer = unsafe { std::slice::from_raw_parts_mut(arena.as_ptr(), 3 * page()) };
    file_of(&content).read_exact_at(buffer, 0).unwrap();
    assert_eq!(bytes(&arena, 0..3 * page()), content);
}
