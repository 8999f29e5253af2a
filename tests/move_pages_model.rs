//! Moving pages within and between two arenas of any templates, against a model.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ErrorKind, Template, page_size};
use proptest::prelude::*;
use std::ops::Range;
use support::fork::fork;
use support::{arena_rss, discard, load, numbered_pages, store};

fn pages(range: Range<usize>) -> Range<usize> {
    range.start * page_size()..range.end * page_size()
}

/// Moves bytes; tests hold no references into arenas.
fn try_move(from: &Arena, range: Range<usize>, to: &Arena, at: usize) -> Result<(), ErrorKind> {
    // SAFETY: nobody has a reference into the arenas, and every byte is valid.
    unsafe { from.move_pages(range, to, at) }.map_err(|error| error.kind())
}

#[derive(Clone, Debug)]
enum Action {
    Write { arena: usize, page: usize, value: u8 },
    Read { arena: usize, page: usize },
    Populate { arena: usize, range: Range<usize> },
    Discard { arena: usize, range: Range<usize> },
    Move { from: usize, to: usize, range: Range<usize>, at: usize },
    Fork,
}

const PAGES: usize = 1300;

fn action() -> impl Strategy<Value = Action> {
    let one = || 0..2usize;
    let range = || {
        (0..PAGES, prop_oneof![0..20usize, 0..900usize])
            .prop_map(|(first, count)| first..(first + count).min(PAGES))
    };
    prop_oneof![
        6 => (one(), 0..PAGES, any::<u8>())
            .prop_map(|(arena, page, value)| Action::Write { arena, page, value }),
        3 => (one(), 0..PAGES).prop_map(|(arena, page)| Action::Read { arena, page }),
        1 => (one(), range()).prop_map(|(arena, range)| Action::Populate { arena, range }),
        1 => (one(), range()).prop_map(|(arena, range)| Action::Discard { arena, range }),
        6 => (one(), one(), range(), 0..PAGES)
            .prop_map(|(from, to, range, at)| Action::Move { from, to, range, at }),
        1 => Just(Action::Fork),
    ]
}

fn template() -> impl Strategy<Value = u8> {
    0..4u8
}

/// A template, and byte 3 of each of its pages.
fn make(kind: u8) -> (Template, Vec<u8>) {
    let image = |len: usize| {
        (0..len * page_size()).map(|at| (at / page_size() * 3 + 1) as u8).collect::<Vec<_>>()
    };
    match kind {
        0 => (Template::zero(), vec![0; PAGES]),
        1 => (Template::repeat(&9u8).unwrap(), vec![9; PAGES]),
        2 => {
            let bytes = image(700);
            let model = (0..PAGES).map(|page| if page < 700 { (page * 3 + 1) as u8 } else { 0 });
            (Template::bytes(&bytes).unwrap(), model.collect())
        }
        _ => (numbered_pages(), (0..PAGES).map(|page| (page >> 8) as u8).collect()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn it_agrees_with_a_model(
        kinds in (template(), template()),
        window in prop::sample::select(&support::WINDOWS[..]),
        budgets in (proptest::option::of(100..2600usize), proptest::option::of(100..2600usize)),
        actions in proptest::collection::vec(action(), 1..50),
    ) {
        let new = |kind, budget: Option<usize>| {
            let (template, model) = make(kind);
            let mut builder = Arena::builder(PAGES * page_size()).template(template).window(window);
            if let Some(pages) = budget {
                builder = builder.budget(pages * page_size());
            }
            (builder.reserve().unwrap(), model.clone(), model)
        };
        let mut both = [new(kinds.0, budgets.0), new(kinds.1, budgets.1)];
        let is_present = |arena: &Arena, page: usize| {
            arena.populated().any(|run| run.contains(&(page * page_size())))
        };
        // A touch that the budget has no room for would be a violation.
        let may_touch = |arena: &Arena, page| {
            arena.stats().budget_left() != Some(0) || is_present(arena, page)
        };
        for action in actions {
            match action {
                Action::Write { arena, page, value } => {
                    let (arena, model, _) = &mut both[arena];
                    if may_touch(arena, page) {
                        store(arena, page * page_size() + 3, value);
                        model[page] = value;
                    }
                }
                Action::Read { arena, page } => {
                    let (arena, model, _) = &both[arena];
                    if may_touch(arena, page) {
                        prop_assert_eq!(load(arena, page * page_size() + 3), model[page]);
                    }
                }
                Action::Populate { arena, range } => _ = both[arena].0.populate(pages(range)),
                Action::Discard { arena, range } => {
                    let (arena, model, template) = &mut both[arena];
                    discard(arena, pages(range.clone()));
                    model[range.clone()].copy_from_slice(&template[range]);
                }
                Action::Move { from, to, range, at } => {
                    let range = range.start..range.end.min(range.start + PAGES - at);
                    let target = at..at + range.len();
                    let overlap = from == to && range.start < target.end && target.start < range.end;
                    let result = try_move(&both[from].0, pages(range.clone()), &both[to].0, at * page_size());
                    match result {
                        Err(kind) if overlap => prop_assert_eq!(kind, ErrorKind::Overlap),
                        Ok(()) => {
                            let content = both[from].1[range.clone()].to_vec();
                            let untouched = both[from].2[range.clone()].to_vec();
                            both[from].1[range].copy_from_slice(&untouched);
                            both[to].1[target].copy_from_slice(&content);
                        }
                        Err(kind) => {
                            prop_assert_eq!(kind, ErrorKind::BudgetExhausted);
                            // How far it came is not told: what may be touched says what it is now.
                            for (arena, model, template) in &mut both {
                                for page in 0..PAGES {
                                    if is_present(arena, page) {
                                        model[page] = load(arena, page * page_size() + 3);
                                    } else {
                                        model[page] = template[page];
                                    }
                                }
                            }
                        }
                    }
                }
                Action::Fork => fork(|| ()),
            }
            for (arena, ..) in &both {
                let stats = arena.stats();
                let charged = stats.resident_bytes + stats.lent_bytes;
                prop_assert!(stats.budget_bytes.is_none_or(|budget| charged <= budget));
                let populated: usize = arena.populated().map(|run| run.len()).sum();
                prop_assert!(populated <= charged);
            }
        }
        for (arena, model, _) in &both {
            let stats = arena.measure().unwrap();
            prop_assert_eq!(stats.resident_bytes, arena_rss(arena));
            for (page, want) in model.iter().enumerate() {
                if may_touch(arena, page) {
                    prop_assert_eq!(load(arena, page * page_size() + 3), *want, "page {}", page);
                }
            }
        }
    }
}
