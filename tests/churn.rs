//! Arenas come and go, over and over, and leave nothing behind. 20,000 of them, or `LACUNA_CHURN`.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Template, Window, page_size};
use std::fs;
use std::time::Instant;
use support::{Watchdog, discard, load, numbered_pages, page, store};

const THREADS: usize = 4;

/// What a process has: bytes of memory, mappings, descriptors.
#[derive(Clone, Copy, Debug)]
struct Books {
    bytes: usize,
    mappings: usize,
    descriptors: usize,
}

impl Books {
    fn look() -> Self {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
        Self {
            bytes: pages * page(),
            mappings: fs::read_to_string("/proc/self/maps").unwrap().lines().count(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        }
    }
}

/// Alone in its file, and so in its process: other tests' memory is not to be counted.
#[test]
fn arenas_that_come_and_go_leave_nothing() {
    let count: usize = std::env::var("LACUNA_CHURN").map_or(20_000, |text| text.parse().unwrap());
    let _watchdog = Watchdog::new("churn", 7200);
    let templates = [
        Template::zero(),
        Template::repeat(&0x77u8).unwrap(),
        Template::bytes(vec![0x66; 5000]).unwrap(),
        Template::file(&support::file_of(&vec![0x55; 9000])).unwrap(),
        numbered_pages(),
    ];
    run(&templates, 400);
    let (before, start) = (Books::look(), Instant::now());
    run(&templates, count);
    let after = Books::look();
    let each = start.elapsed().as_secs_f64() * 1e6 / count as f64;
    println!("{count} arenas, {each:.1} us each: {before:?}, then {after:?}");
    // What is left is the C library's: threads' stacks and arenas, which it keeps a few of.
    assert!(after.bytes <= before.bytes + (4 << 20), "{before:?}, then {after:?}");
    assert!(after.mappings <= before.mappings + 16, "{before:?}, then {after:?}");
    assert_eq!(after.descriptors, before.descriptors);
}

fn run(templates: &[Template], count: usize) {
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || (thread..count).step_by(THREADS).for_each(|it| one(templates, it)));
        }
    });
}

/// One arena's life: what it contains is never what another left at its address.
fn one(templates: &[Template], number: usize) {
    let kind = number % templates.len();
    let window = [Window::Adaptive, Window::Pages(1), Window::Pages(16)][number % 3];
    let len = [3, 30, 700, 1 << 20][number % 4] * page_size();
    let builder = Arena::builder(len).template(templates[kind].clone()).window(window);
    let arena = builder.budget(64 << 20).reserve().unwrap();
    let last = len / page_size() - 1;
    for page in [0, last / 2, last] {
        let offset = page * page_size();
        let untouched = match (kind, page) {
            (1, _) => 0x77,
            (2, 0 | 1) => 0x66,
            (3, 0..=2) => 0x55,
            _ => 0,
        };
        let found = load(&arena, offset);
        // Pages that coincide were written before.
        assert!(found == untouched || found == 0xee, "page {page}: {found:#x}");
        store(&arena, offset, 0xee);
    }
    if number.is_multiple_of(7) {
        discard(&arena, 0..page_size());
    }
    if number.is_multiple_of(64) && len > 2 << 20 {
        arena.populate(0..2 << 20).unwrap();
    }
}
