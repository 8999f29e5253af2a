//! Poisoned ranges: a touch is a violation that names them, nothing makes them present, and nothing else
//! about the arena changes.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Bound, ErrorKind, OnFork, Template, Violation, Window, page_size};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use support::fork::{fork, status_of_fork};
use support::{
    Rng, WINDOWS, assert_killed, discard, fault_signal, in_child, load, numbered_pages, read_into,
    stderr, store, text,
};

const CHUNK: usize = 2 << 20;

fn pages(range: Range<usize>) -> Range<usize> {
    range.start * page_size()..range.end * page_size()
}

/// Poisons a range of bytes, of which tests hold no references.
fn poison(arena: &Arena, range: Range<usize>) {
    // SAFETY: nobody has a reference into the arena, and every byte is valid.
    unsafe { arena.poison(range) }.unwrap();
}

fn zeroes(len: usize) -> Arena {
    Arena::builder(len).name("guarded").reserve().unwrap()
}

#[track_caller]
fn dies(name: &str, role: &str, line: &str, body: impl FnOnce()) {
    let output = in_child(name, role, body);
    assert_killed(&output, fault_signal());
    assert_eq!(stderr(&output), line, "{}", text(&output));
}

/// How many mappings the process has.
fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").unwrap().lines().count()
}

#[test]
fn a_touch_is_a_violation_that_names_the_range() {
    let name = "a_touch_is_a_violation_that_names_the_range";
    let page = page_size();
    let range = format!("lies in the poisoned range {}..{}\n", 3 * page, 5 * page);
    let line = format!("lacuna: arena \"guarded\": read at offset {} {range}", 4 * page + 7);
    dies(name, "missing", &line, || {
        let arena = zeroes(1 << 30);
        poison(&arena, pages(3..5));
        load(&arena, 4 * page_size() + 7);
    });
    let line = format!("lacuna: arena \"guarded\": write at offset {} {range}", 3 * page);
    dies(name, "present", &line, || {
        let arena = zeroes(1 << 30);
        (0..10).for_each(|page| store(&arena, page * page_size(), 1));
        poison(&arena, pages(3..5));
        assert_eq!((load(&arena, 2 * page_size()), load(&arena, 5 * page_size())), (1, 1));
        store(&arena, 3 * page_size(), 1);
    });
    let line = format!(
        "lacuna: arena \"guarded\": read at offset {} lies in the poisoned range {}..{}\n",
        3 * CHUNK,
        CHUNK - page,
        4 * CHUNK + page
    );
    dies(name, "chunks", &line, || {
        let arena = zeroes(1 << 30);
        poison(&arena, CHUNK - page_size()..4 * CHUNK + page_size());
        load(&arena, 3 * CHUNK);
    });
    let line = format!(
        "lacuna: arena \"guarded\": read at offset 0 lies in the poisoned range 0..{}\n",
        1 << 30
    );
    dies(name, "all", &line, || {
        let arena = zeroes(1 << 30);
        poison(&arena, 0..1 << 30);
        load(&arena, 0);
    });
}

#[test]
fn the_hook_is_told() {
    fn tell(violation: &Violation) {
        let Bound::Poisoned { start, end } = violation.bound() else { return };
        // Not what a real hook may do; here the thread holds no lock and the stack is large.
        eprintln!("hook: {} in {start}..{end}", violation.offset());
    }
    let output = in_child("the_hook_is_told", "hook", || {
        // SAFETY: see `tell`.
        unsafe { lacuna::set_violation_hook(Some(tell)) };
        let arena = zeroes(1 << 20);
        poison(&arena, pages(1..2));
        load(&arena, page_size());
    });
    let page = page_size();
    assert!(stderr(&output).ends_with(&format!("hook: {page} in {page}..{}\n", 2 * page)));
}

#[test]
fn no_window_reaches_a_poisoned_page() {
    for window in WINDOWS {
        for template in [Template::zero(), numbered_pages()] {
            let arena = Arena::builder(4 * CHUNK).window(window).template(template);
            let arena = arena.reserve().unwrap();
            let guard = CHUNK / page_size() + 100;
            poison(&arena, pages(guard..guard + 1));
            let others = (0..arena.len() / page_size()).filter(|page| *page != guard);
            others.for_each(|page| store(&arena, page * page_size(), 1));
            let runs: Vec<_> = arena.populated().collect();
            let (before, after) = (pages(0..guard), pages(guard + 1..4 * CHUNK / page_size()));
            assert_eq!(runs, [before, after], "{window:?}");
            assert_eq!(
                read_into(&arena, guard * page_size(), &[1]).unwrap_err().raw_os_error(),
                Some(libc::EFAULT)
            );
            assert_eq!(arena.measure().unwrap().resident_bytes, arena.len() - page_size());
        }
    }
}

#[test]
fn fixed_windows_end_there() {
    let arena = Arena::builder(CHUNK).window(Window::Pages(512)).reserve().unwrap();
    poison(&arena, pages(5..6));
    poison(&arena, pages(9..10));
    store(&arena, 7 * page_size(), 1);
    assert_eq!(arena.populated().collect::<Vec<_>>(), [pages(6..9)]);
}

#[test]
fn populating_it_is_an_error() {
    let arena = zeroes(8 * CHUNK);
    poison(&arena, 2 * CHUNK..2 * CHUNK + page_size());
    let error = arena.populate(0..8 * CHUNK).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Poisoned);
    assert_eq!(arena.stats().resident_bytes, 2 * CHUNK);
    arena.populate(2 * CHUNK + page_size()..8 * CHUNK).unwrap();
    assert_eq!(arena.stats().resident_bytes, 8 * CHUNK - page_size());
}

#[test]
fn it_stays_until_it_is_lifted() {
    let template = Template::repeat(&7u8).unwrap();
    let arena = Arena::builder(1 << 30).template(template).keep_resident(CHUNK).reserve().unwrap();
    store(&arena, 0, 1);
    poison(&arena, pages(1..2));
    // Twice is once.
    poison(&arena, pages(0..3));
    assert_eq!(arena.stats().poisoned_bytes, 3 * page_size());
    assert_eq!(arena.stats().resident_bytes, 0);
    discard(&arena, 0..1 << 30);
    // SAFETY: nobody has a reference into the arena.
    unsafe { arena.reset() }.unwrap();
    assert_eq!(arena.stats().poisoned_bytes, 3 * page_size());
    assert!(arena.populate(pages(2..3)).is_err());
    arena.unpoison(pages(0..2)).unwrap();
    assert_eq!((load(&arena, 0), load(&arena, page_size())), (7, 7));
    assert!(arena.populate(pages(2..3)).is_err());
    arena.unpoison(0..1 << 30).unwrap();
    assert_eq!((load(&arena, 2 * page_size()), arena.stats().poisoned_bytes), (7, 0));
}

#[test]
fn bad_ranges_are_errors() {
    let arena = zeroes(CHUNK);
    // SAFETY: nobody has a reference into the arena.
    let poison = |range| unsafe { arena.poison(range) }.map_err(|error| error.kind());
    let unpoison = |range| arena.unpoison(range).map_err(|error| error.kind());
    for result in [poison(0..CHUNK + 4096), unpoison(0..CHUNK + 4096)] {
        assert_eq!(result, Err(ErrorKind::OutOfBounds));
    }
    for result in [poison(1..4096), unpoison(0..4095)] {
        assert_eq!(result, Err(ErrorKind::Unaligned));
    }
    assert_eq!((poison(0..0), poison(CHUNK..CHUNK), unpoison(0..0)), (Ok(()), Ok(()), Ok(())));
}

#[test]
fn it_splits_no_mapping() {
    let arena = Arena::builder(1 << 30).backend(Backend::Userfaultfd).reserve().unwrap();
    store(&arena, 0, 1);
    let before = mappings();
    for guard in 1..1000 {
        poison(&arena, pages(guard * 3..guard * 3 + 1));
    }
    // Other tests map a little meanwhile.
    assert!(mappings() < before + 200, "{before}, {} then", mappings());
}

#[test]
fn a_lent_chunk_is_recalled() {
    let arena = zeroes(1 << 30);
    let mut rng = Rng(7);
    let mut scatter = |arena: &Arena| {
        for _ in 0..30 {
            store(arena, rng.below(CHUNK / 4096 / 8) * 8 * 4096, 1);
        }
    };
    scatter(&arena);
    assert_eq!(arena.stats().lent_bytes + arena.stats().resident_bytes, CHUNK, "it is lent");
    let guard = CHUNK - page_size();
    poison(&arena, guard..CHUNK);
    assert!(arena.stats().lent_bytes < CHUNK / 2);
    assert!(read_into(&arena, guard, &[1]).is_err(), "the kernel fills it");
    discard(&arena, 0..guard);
    scatter(&arena);
    let stats = arena.measure().unwrap();
    assert_eq!(stats.lent_bytes, 0, "it was lent again");
    assert!(read_into(&arena, guard, &[1]).is_err(), "the kernel fills it");
}

#[test]
fn children_inherit_it_with_the_content() {
    let arena = zeroes(1 << 30);
    store(&arena, 0, 1);
    poison(&arena, pages(1..2));
    fork(|| {
        assert_eq!((load(&arena, 0), arena.stats().poisoned_bytes), (1, page_size()));
        assert!(arena.populate(pages(1..2)).is_err());
        arena.unpoison(pages(1..2)).unwrap();
        assert_eq!(load(&arena, page_size()), 0);
    });
    assert_eq!(arena.stats().poisoned_bytes, page_size());
    let status = status_of_fork(|| {
        // SAFETY: the line of the violation goes nowhere.
        unsafe { libc::close(libc::STDERR_FILENO) };
        load(&arena, page_size());
    });
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == fault_signal(), "{status}");
    let wiped = Arena::builder(1 << 30).on_fork(OnFork::Wipe).reserve().unwrap();
    poison(&wiped, pages(0..9));
    fork(|| {
        assert_eq!((load(&wiped, 0), wiped.stats().poisoned_bytes), (0, 0));
        poison(&wiped, pages(3..4));
        assert_eq!(wiped.stats().poisoned_bytes, page_size());
    });
}

#[test]
fn neighbours_are_touched_meanwhile() {
    let arena = zeroes(4 * CHUNK);
    let count = arena.len() / page_size();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300 {
                let odd = (2 * round + 1) % count;
                poison(&arena, pages(odd..odd + 1));
                poison(&arena, pages(1..2));
                arena.unpoison(pages(odd..odd + 1)).unwrap();
            }
        });
        for thread in 0..2u64 {
            let arena = &arena;
            scope.spawn(move || {
                let mut rng = Rng(thread);
                for round in 0..3000 {
                    let page = rng.below(count / 2) * 2;
                    // Each thread has bytes of its own.
                    store(arena, page * page_size() + thread as usize, round as u8);
                    assert_eq!(load(arena, page * page_size() + thread as usize), round as u8);
                }
            });
        }
    });
    assert_eq!(arena.stats().poisoned_bytes, page_size());
    discard(&arena, 0..arena.len());
    assert_eq!((arena.stats().resident_bytes, arena.stats().lent_bytes), (0, 0));
}

#[derive(Clone, Debug)]
enum Action {
    Poison(Range<usize>),
    Unpoison(Range<usize>),
    Discard(Range<usize>),
    Populate(Range<usize>),
    Write(usize, u8),
}

const PAGES: usize = 1100;

fn action() -> impl Strategy<Value = Action> {
    let range =
        || (0..PAGES, 0..700usize).prop_map(|(first, count)| first..(first + count).min(PAGES));
    let short =
        || (0..PAGES, 0..9usize).prop_map(|(first, count)| first..(first + count).min(PAGES));
    prop_oneof![
        2 => short().prop_map(Action::Poison),
        1 => range().prop_map(Action::Poison),
        1 => short().prop_map(Action::Unpoison),
        1 => range().prop_map(Action::Unpoison),
        1 => range().prop_map(Action::Discard),
        2 => range().prop_map(Action::Populate),
        6 => (0..PAGES, any::<u8>()).prop_map(|(page, value)| Action::Write(page, value)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_a_model(
        window in prop::sample::select(&WINDOWS[..]),
        numbered: bool,
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let template = if numbered { numbered_pages() } else { Template::zero() };
        let arena = Arena::builder(PAGES * page_size()).window(window).template(template);
        let arena = arena.reserve().unwrap();
        let mut poisoned = vec![false; PAGES];
        let mut written = BTreeMap::new();
        for action in actions {
            match action {
                Action::Poison(range) => {
                    poison(&arena, pages(range.clone()));
                    written.retain(|page, _| !range.contains(page));
                    poisoned[range].fill(true);
                }
                Action::Unpoison(range) => {
                    arena.unpoison(pages(range.clone())).unwrap();
                    poisoned[range].fill(false);
                }
                Action::Discard(range) => {
                    discard(&arena, pages(range.clone()));
                    written.retain(|page, _| !range.contains(page));
                }
                Action::Populate(range) => {
                    let result = arena.populate(pages(range.clone())).map_err(|it| it.kind());
                    let is_poisoned = poisoned[range].contains(&true);
                    prop_assert_eq!(result.err(), is_poisoned.then_some(ErrorKind::Poisoned));
                }
                Action::Write(page, _) if poisoned[page] => {}
                Action::Write(page, value) => {
                    store(&arena, page * page_size() + 3, value);
                    written.insert(page, value);
                }
            }
            let count = poisoned.iter().filter(|it| **it).count();
            prop_assert_eq!(arena.stats().poisoned_bytes, count * page_size());
            for run in arena.populated() {
                let run = run.start / page_size()..run.end / page_size();
                prop_assert!(!poisoned[run].contains(&true), "it is present");
            }
        }
        let stats = arena.measure().unwrap();
        prop_assert_eq!(stats.resident_bytes, support::arena_rss(&arena));
        for page in (0..PAGES).filter(|page| !poisoned[*page]) {
            let untouched = if numbered { (page >> 8) as u8 } else { 0 };
            let want = written.get(&page).copied().unwrap_or(untouched);
            prop_assert_eq!(load(&arena, page * page_size() + 3), want);
        }
    }
}
