//! Contents and counters of two arenas on one file, against a model.

use crate::support::{WINDOWS, arena_rss, discard, load, page, read_into, store};
use crate::{PAGES, builder, empty_file, sevens};
use lacuna::{Template, Window};
use proptest::prelude::*;
use std::fs::File;
use std::os::fd::AsRawFd;

#[derive(Clone, Debug)]
enum Action {
    Write(usize, u8),
    Read(usize),
    Kernel(usize, u8),
    Populate(usize, usize),
    Discard(usize, usize),
    Measure,
}

fn action() -> impl Strategy<Value = (bool, Action)> {
    let page = || 0..PAGES;
    let action = prop_oneof![
        4 => (page(), any::<u8>()).prop_map(|(page, value)| Action::Write(page, value)),
        3 => page().prop_map(Action::Read),
        1 => (page(), any::<u8>()).prop_map(|(page, value)| Action::Kernel(page, value)),
        1 => (page(), 0..700usize).prop_map(|(first, count)| Action::Populate(first, count)),
        1 => (page(), 0..900usize).prop_map(|(first, count)| Action::Discard(first, count)),
        1 => Just(Action::Measure),
    ];
    (any::<bool>(), action)
}

/// Does it to two arenas on one file, whose content is the model's, and whose pages are one or the
/// other's.
fn follow(window: Window, template: &Template, actions: Vec<(bool, Action)>) {
    let zero = format!("{template:?}").contains("zero");
    let expected = if zero { 0 } else { 7 };
    let file = empty_file(PAGES * page());
    let make = || builder(PAGES * page()).template(template.clone()).window(window).memfd(&file);
    let arenas = [make().reserve().unwrap(), make().reserve().unwrap()];
    let mut written = std::collections::BTreeMap::new();
    for (which, action) in actions {
        let arena = &arenas[usize::from(which)];
        let range = |first: usize, count: usize| first..(first + count).min(PAGES);
        match action {
            Action::Write(page_index, value) => {
                store(arena, page_index * page() + 3, value);
                written.insert(page_index, value);
            }
            Action::Read(page_index) => {
                let want = written.get(&page_index).copied().unwrap_or(expected);
                assert_eq!(load(arena, page_index * page() + 3), want);
                assert_eq!(load(arena, page_index * page() + 4), expected);
            }
            Action::Kernel(page_index, value) => {
                let there = pages_in(&file, page_index);
                let result = read_into(arena, page_index * page() + 3, &[value]);
                assert_eq!(result.is_ok(), there);
                if there {
                    written.insert(page_index, value);
                }
            }
            Action::Populate(first, count) => {
                let pages = range(first, count);
                arena.populate(pages.start * page()..pages.end * page()).unwrap();
                assert!(pages.clone().all(|it| pages_in(&file, it)));
            }
            Action::Discard(first, count) => {
                let pages = range(first, count);
                discard(arena, pages.start * page()..pages.end * page());
                written.retain(|it, _| !pages.contains(it));
                assert!(!pages.clone().any(|it| pages_in(&file, it)));
            }
            Action::Measure => {
                assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(arena));
            }
        }
        for arena in &arenas {
            let stats = arena.stats();
            let populated: usize = arena.populated().map(|run| run.len()).sum();
            assert_eq!((stats.resident_bytes, stats.lent_bytes), (populated, 0));
        }
    }
    for arena in &arenas {
        assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(arena));
        for (page_index, value) in &written {
            assert_eq!(load(arena, page_index * page() + 3), *value);
        }
    }
}

/// Whether a file has a page.
fn pages_in(file: &File, index: usize) -> bool {
    let at = (index * page()) as libc::off_t;
    // SAFETY: it touches no memory.
    unsafe { libc::lseek(file.as_raw_fd(), at, libc::SEEK_DATA) == at }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_arenas_on_one_file_agree_with_a_model(
        window in prop::sample::select(&WINDOWS[..]),
        zero: bool,
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let template = if zero { Template::zero() } else { sevens() };
        follow(window, &template, actions);
    }
}
