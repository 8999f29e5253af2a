//! Chunks that are lent to the kernel, and recalled.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Template, Window, page_size};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::sync::Barrier;
use support::{assert_success, in_child};

const CHUNK: usize = 2 << 20;

fn write(arena: &Arena, page: usize, value: u8) {
    // SAFETY: the page is within the arena, which nobody else uses.
    unsafe { arena.as_ptr().add(page * page_size()).write_volatile(value) };
}

fn read(arena: &Arena, page: usize) -> u8 {
    // SAFETY: as above.
    unsafe { arena.as_ptr().add(page * page_size()).read_volatile() }
}

/// Pages of a chunk.
fn pages() -> usize {
    CHUNK / page_size()
}

/// `Rss` of the arena, which lending cuts into several mappings.
fn rss(arena: &Arena) -> usize {
    let bytes = arena.as_ptr().addr()..arena.as_ptr().addr() + arena.len();
    let mut inside = false;
    let mut sum = 0;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Rss:") if inside => sum += words.next().unwrap().parse::<usize>().unwrap(),
            Some(range) => {
                if let Some((start, _)) = range.split_once('-') {
                    let start = usize::from_str_radix(start, 16).unwrap_or(0);
                    inside = if start == 0 { inside } else { bytes.contains(&start) };
                }
            }
            None => {}
        }
    }
    sum << 10
}

/// Touches pages far from each other until the chunk is lent, and tells which.
fn have_lent(arena: &Arena, chunk: usize) -> Vec<usize> {
    let touched: Vec<usize> = (0..8).map(|i| chunk * pages() + 3 + 40 * i).collect();
    touched.iter().for_each(|page| write(arena, *page, 9));
    assert!(arena.stats().lent_bytes > CHUNK / 2, "chunk {chunk} was not lent");
    touched
}

fn runs(pages: &[usize]) -> Vec<Range<usize>> {
    let page = page_size();
    pages.iter().map(|index| index * page..(index + 1) * page).collect()
}

#[test]
fn scattered_touches_are_taken_over_by_the_kernel() {
    let arena = Arena::builder(64 << 30).reserve().unwrap();
    let touched = have_lent(&arena, 5);
    let faults = arena.stats().faults;
    assert!(faults <= 3, "{faults} faults for {} touches", touched.len());
    assert_eq!(arena.populated().collect::<Vec<_>>(), runs(&touched));
    assert_eq!(rss(&arena), touched.len() * page_size());

    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, touched.len() * page_size());
    assert_eq!(stats.resident_bytes + stats.lent_bytes, CHUNK);
    write(&arena, 5 * pages() + 500, 1);
    assert_eq!(arena.measure().unwrap().resident_bytes, rss(&arena));
}

#[test]
fn system_calls_can_fill_lent_memory() {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    have_lent(&arena, 0);
    // SAFETY: the bytes are within the arena, zeroed, and nobody else uses them.
    let buffer = unsafe { std::slice::from_raw_parts_mut(arena.as_ptr().add(CHUNK / 2), 64 << 10) };
    File::open("/dev/zero").unwrap().read_exact(buffer).unwrap();
}

#[test]
fn lending_can_be_turned_off_and_is_for_zeroes_alone() {
    let template = Template::repeat(&1u8).unwrap();
    let builder = || Arena::builder(1 << 30);
    for builder in
        [builder().lending(false), builder().template(template), builder().window(Window::Pages(1))]
    {
        let arena = builder.reserve().unwrap();
        (0..8).for_each(|i| write(&arena, 3 + 40 * i, 9));
        assert_eq!(arena.stats().lent_bytes, 0);
        assert_eq!(arena.stats().resident_bytes, 8 * page_size());
    }
}

#[test]
fn discarding_recalls() {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    let touched = have_lent(&arena, 1);
    // SAFETY: nobody has a reference into the arena.
    unsafe { arena.discard(CHUNK..CHUNK + 100 * page_size()).unwrap() };
    let left: Vec<usize> = touched.into_iter().filter(|page| *page >= pages() + 100).collect();
    assert_eq!(arena.populated().collect::<Vec<_>>(), runs(&left));
    let stats = arena.measure().unwrap();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (left.len() * page_size(), 0));
    assert_eq!(rss(&arena), stats.resident_bytes);
    assert!(left.iter().all(|page| read(&arena, *page) == 9));

    // SAFETY: as above.
    unsafe { arena.reset().unwrap() };
    assert_eq!((arena.stats().resident_bytes, arena.stats().lent_bytes, rss(&arena)), (0, 0, 0));
    let faults = arena.stats().faults;
    write(&arena, pages() + 3, 1);
    assert_eq!(arena.stats().faults, faults + 1, "the chunk is not registered again");
}

#[test]
fn a_lower_limit_recalls_what_lies_past_it() {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    have_lent(&arena, 1);
    have_lent(&arena, 9);
    arena.set_limit(4 * CHUNK).unwrap();
    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, rss(&arena));
    // Chunk 1 stays lent; of chunk 9 only what was touched is charged.
    assert_eq!(stats.resident_bytes + stats.lent_bytes, CHUNK + 8 * page_size());
}

#[test]
fn a_full_budget_recalls_and_is_never_exceeded() {
    let budget = 8 * CHUNK;
    let arena = Arena::builder(1 << 40).budget(budget).reserve().unwrap();
    let most = budget / page_size();
    // Two or three touches in each of many chunks, then single ones elsewhere until it is full.
    let mut touched: Vec<usize> =
        (0..16).flat_map(|chunk| (0..3).map(move |i| chunk * 512 + 7 + 100 * i)).collect();
    touched.extend((0..most - touched.len()).map(|i| (100 + i) * 512));
    for (count, page) in touched.iter().enumerate() {
        write(&arena, *page, 3);
        let stats = arena.stats();
        assert!(stats.resident_bytes + stats.lent_bytes <= budget, "after {count} touches");
        if count % 512 == 0 {
            assert!(rss(&arena) <= budget);
        }
    }
    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, budget);
    assert_eq!(rss(&arena), budget);
    assert!(touched.iter().all(|page| read(&arena, *page) == 3));
}

#[test]
fn populating_a_lent_chunk_makes_it_memory() {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    have_lent(&arena, 2);
    arena.populate(2 * CHUNK..3 * CHUNK).unwrap();
    assert_eq!(arena.stats().lent_bytes, 0);
    assert_eq!(arena.stats().resident_bytes, CHUNK);
    assert_eq!(rss(&arena), CHUNK);
}

/// What the program drops behind our back is the kernel's to fill again, and stays charged.
#[test]
fn dropped_pages_of_a_lent_chunk_stay_charged() {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    let touched = have_lent(&arena, 2);
    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, touched.len() * page_size());
    let start = arena.as_ptr().wrapping_add(2 * CHUNK);
    // SAFETY: nobody has a reference into the arena.
    let dropped = unsafe { libc::madvise(start.cast(), CHUNK, libc::MADV_DONTNEED) };
    assert_eq!(dropped, 0);
    let stats = arena.measure().unwrap();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, CHUNK));
    touched.iter().for_each(|page| write(&arena, *page, 1));
    let stats = arena.measure().unwrap();
    assert_eq!(
        (stats.resident_bytes, stats.resident_bytes + stats.lent_bytes),
        (rss(&arena), CHUNK)
    );
}

/// In a process of its own: the mappings that lending may make are the process's.
#[test]
fn neighbours_merge_and_mappings_are_bounded() {
    let name = "neighbours_merge_and_mappings_are_bounded";
    assert_success(&in_child(name, "alone", lend_many));
}

fn lend_many() {
    let arena = Arena::builder(128 << 30).reserve().unwrap();
    let maps = || fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let before = maps();
    for chunk in 0..256 {
        have_lent(&arena, chunk);
    }
    assert!(maps() < before + 10, "{} mappings, {before} before", maps());
    let most: usize =
        fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    for chunk in 0..16_000 {
        for i in 0..3 {
            write(&arena, (1000 + 2 * chunk) * pages() + 5 + 50 * i, 1);
        }
    }
    let bound = match arena.backend() {
        // Each page that is present alone is a mapping there.
        Backend::Mprotect => most,
        _ => most / 4 + 1000,
    };
    assert!(maps() < bound, "{} mappings", maps());
    drop(arena);
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    have_lent(&arena, 0);
}

#[test]
fn threads_that_race_in_lent_chunks_lose_nothing() {
    let arena = Arena::builder(64 * CHUNK).reserve().unwrap();
    let count = arena.len() / page_size();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let arena = &arena;
            scope.spawn(move || {
                let mut page = thread * 977;
                for _ in 0..count {
                    page = (page + 7919) % count;
                    // SAFETY: within the arena; each thread has a byte of its own.
                    unsafe { arena.as_ptr().add(page * page_size() + thread).write_volatile(1) };
                }
            });
        }
    });
    for page in 0..count {
        for thread in 0..8 {
            // SAFETY: as above.
            let byte = unsafe { arena.as_ptr().add(page * page_size() + thread).read_volatile() };
            assert_eq!(byte, 1, "page {page}");
        }
    }
    let stats = arena.measure().unwrap();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (arena.len(), 0));
    assert_eq!(rss(&arena), arena.len());
}

/// Whoever finds the budget full while another thread recalls the last lent chunk waits for what that
/// frees: the pages that were touched fit, so nothing of this may be a violation.
#[test]
fn racing_for_the_last_lent_chunk_is_no_violation() {
    let name = "racing_for_the_last_lent_chunk_is_no_violation";
    assert_success(&in_child(name, "alone", || (0..400).for_each(|_| race_for_a_lent_chunk())));
}

fn race_for_a_lent_chunk() {
    const THREADS: usize = 4;
    let arena = full_with_a_lent_chunk();
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (arena, start) = (&arena, &start);
            scope.spawn(move || {
                start.wait();
                (0..4).for_each(|chunk| write(arena, (10 + 4 * thread + chunk) * pages(), 5));
            });
        }
    });
    let stats = arena.measure().unwrap();
    assert_eq!(stats.budget_left(), Some(488 * page_size()), "{stats}");
}

/// Its budget is full: a lent chunk with eight pages touched, and memory.
fn full_with_a_lent_chunk() -> Arena {
    let arena = Arena::builder(1 << 30).budget(4 * CHUNK).reserve().unwrap();
    have_lent(&arena, 0);
    arena.populate(CHUNK..4 * CHUNK).unwrap();
    assert_eq!(arena.stats().budget_left(), Some(0));
    arena
}

/// As a touch does.
#[test]
fn populating_recalls_when_the_budget_is_full() {
    let arena = full_with_a_lent_chunk();
    arena.populate(8 * CHUNK..9 * CHUNK - 8 * page_size()).unwrap();
    assert_eq!(arena.measure().unwrap().resident_bytes, 4 * CHUNK);
    assert_eq!(rss(&arena), 4 * CHUNK);
    let error = arena.populate(9 * CHUNK..9 * CHUNK + page_size()).unwrap_err();
    assert_eq!(error.kind(), lacuna::ErrorKind::BudgetExhausted);
}
