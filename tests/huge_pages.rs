//! Chunks that are filled whole, with a huge page where the system has one.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ArenaBuilder, Template, Window, page_size};
use std::fs;
use support::{assert_success, in_child, smaps_of};

const CHUNK: usize = 2 << 20;

/// Whether the kernel gives huge pages to whoever asks by madvise(2).
fn has_huge_pages() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let has = enabled.is_ok_and(|text| !text.contains("[never]"));
    if !has {
        eprintln!("NOT TESTED: this system has no transparent huge pages");
    }
    has
}

/// The sum of a number in kB over the arena's mappings.
fn smaps(arena: &Arena, field: &str) -> usize {
    smaps_of(arena.as_ptr().addr(), arena.len(), &[field])
}

fn write(arena: &Arena, offset: usize, value: u8) {
    // SAFETY: the offset is within the arena, which nobody else uses.
    unsafe { arena.as_ptr().add(offset).write_volatile(value) };
}

fn read(arena: &Arena, offset: usize) -> u8 {
    // SAFETY: as above.
    unsafe { arena.as_ptr().add(offset).read_volatile() }
}

fn pages(bytes: usize) -> impl DoubleEndedIterator<Item = usize> {
    (0..bytes).step_by(page_size())
}

/// The byte that a template has at an offset.
type Byte = fn(usize) -> u8;

/// Every template whose chunks may be huge pages.
fn templates() -> Vec<(Template, Byte)> {
    fn page_number(index: u64, page: &mut [u8]) {
        page.fill(index as u8);
    }
    let image: Vec<u8> = (0..5 * CHUNK + 1234).map(|i| (i / 4096 % 251) as u8).collect();
    vec![
        (Template::zero(), |_| 0),
        (Template::repeat(&[1u8, 2, 3, 4, 5, 6, 7]).unwrap(), |i| (i % 7) as u8 + 1),
        (Template::bytes(image).unwrap(), |i| {
            if i < 5 * CHUNK + 1234 { (i / 4096 % 251) as u8 } else { 0 }
        }),
        // SAFETY: it writes to the page, nothing else.
        (unsafe { Template::generate(page_number) }, |i| (i / page_size()) as u8),
    ]
}

fn check_stream(builder: &ArenaBuilder<'_>, byte: Byte, backward: bool) -> Arena {
    let arena = builder.clone().reserve().unwrap();
    let touch = |page| write(&arena, page + 9, 200);
    match backward {
        true => pages(arena.len()).rev().for_each(touch),
        false => pages(arena.len()).for_each(touch),
    }
    for page in pages(arena.len()) {
        assert_eq!(read(&arena, page + 9), 200);
        for offset in [0, 8, 10, page_size() - 1] {
            assert_eq!(read(&arena, page + offset), byte(page + offset), "{page} {offset}");
        }
    }
    let stats = arena.stats();
    assert_eq!(stats.resident_bytes, arena.len());
    assert_eq!(smaps(&arena, "Rss:") << 10, arena.len());
    arena
}

#[test]
fn streams_get_huge_pages_with_any_template_in_either_direction() {
    for (template, byte) in templates() {
        for backward in [false, true] {
            let builder = Arena::builder(8 * CHUNK).lending(false).template(template.clone());
            let arena = check_stream(&builder, byte, backward);
            if has_huge_pages() {
                // The first chunk grows by windows.
                assert_eq!(smaps(&arena, "AnonHugePages:") << 10, 7 * CHUNK, "{template:?}");
            }
        }
    }
}

#[test]
fn huge_pages_can_be_turned_off() {
    let builder = Arena::builder(8 * CHUNK).lending(false).huge_pages(false);
    let arena = check_stream(&builder, |_| 0, false);
    assert_eq!(smaps(&arena, "AnonHugePages:"), 0);
}

#[test]
fn populate_fills_whole_chunks() {
    for (template, byte) in templates() {
        let arena = Arena::builder(8 * CHUNK).lending(false).template(template).reserve().unwrap();
        arena.populate(CHUNK - page_size()..7 * CHUNK + page_size()).unwrap();
        assert_eq!(arena.stats().faults, 0);
        assert_eq!(arena.stats().resident_bytes, 6 * CHUNK + 2 * page_size());
        assert_eq!(smaps(&arena, "Rss:") << 10, arena.stats().resident_bytes);
        for offset in (CHUNK..7 * CHUNK).step_by(1021) {
            assert_eq!(read(&arena, offset), byte(offset));
        }
        assert_eq!(arena.stats().faults, 0);
        if has_huge_pages() {
            assert_eq!(smaps(&arena, "AnonHugePages:") << 10, 6 * CHUNK);
        }
    }
}

#[test]
fn a_budget_or_a_limit_without_room_for_a_chunk_is_kept() {
    let arena =
        Arena::builder(8 * CHUNK).lending(false).budget(2 * CHUNK - page_size()).reserve().unwrap();
    pages(2 * CHUNK - page_size()).for_each(|page| write(&arena, page, 1));
    assert_eq!(arena.stats().resident_bytes, 2 * CHUNK - page_size());
    assert_eq!(arena.stats().budget_left(), Some(0));

    let arena =
        Arena::builder(8 * CHUNK).lending(false).limit(2 * CHUNK - page_size()).reserve().unwrap();
    pages(2 * CHUNK - page_size()).for_each(|page| write(&arena, page, 1));
    assert_eq!(arena.stats().resident_bytes, 2 * CHUNK - page_size());
    assert_eq!(smaps(&arena, "Rss:") << 10, arena.stats().resident_bytes);
}

#[test]
fn parts_of_a_huge_page_can_be_discarded() {
    let template = Template::repeat(&0x5au8).unwrap();
    let arena = Arena::builder(4 * CHUNK).template(template).reserve().unwrap();
    arena.populate(0..4 * CHUNK).unwrap();
    pages(4 * CHUNK).for_each(|page| write(&arena, page, 1));
    // SAFETY: nobody has a reference into the arena.
    unsafe { arena.discard(CHUNK + 3 * page_size()..2 * CHUNK).unwrap() };
    assert_eq!(arena.stats().resident_bytes, 3 * CHUNK + 3 * page_size());
    assert_eq!(smaps(&arena, "Rss:") << 10, arena.stats().resident_bytes);
    assert_eq!(read(&arena, CHUNK + 2 * page_size()), 1);
    assert_eq!(read(&arena, CHUNK + 3 * page_size()), 0x5a);
}

/// In a process of its own: the slots that huge pages are made in are the process's, and other tests
/// count on one.
#[test]
fn threads_that_race_for_a_chunk_lose_nothing() {
    let name = "threads_that_race_for_a_chunk_lose_nothing";
    assert_success(&in_child(name, "alone", race));
}

fn race() {
    for window in [Window::Adaptive, Window::Pages(512)] {
        let arena = Arena::builder(32 * CHUNK).lending(false).window(window).reserve().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let arena = &arena;
                scope.spawn(move || {
                    pages(arena.len()).for_each(|page| write(arena, page + usize::from(thread), 7));
                });
            }
        });
        for page in pages(arena.len()) {
            assert!((0..8).all(|thread| read(&arena, page + thread) == 7), "{page:#x}");
        }
        assert_eq!(arena.stats().resident_bytes, arena.len());
        assert_eq!(smaps(&arena, "Rss:") << 10, arena.len());
    }
}
