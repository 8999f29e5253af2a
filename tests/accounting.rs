//! Counters and contents against a model, and against the kernel.

#![allow(missing_docs, reason = "a test")]

#[path = "support/arena_interpreter.rs"]
mod arena_interpreter;
mod support;

use arena_interpreter::{Action, Content, PAGES, Setup, run};
use lacuna::{Arena, Window, page_size};
use proptest::prelude::*;
use support::{WINDOWS, arena_rss, discard, store};

fn action() -> impl Strategy<Value = Action> {
    let page = || 0..PAGES;
    prop_oneof![
        4 => (page(), 0..page_size(), any::<u8>())
            .prop_map(|(page, at, value)| Action::Write { page, at, value }),
        3 => page().prop_map(|page| Action::Read { page }),
        2 => (page(), any::<u8>()).prop_map(|(page, value)| Action::Kernel { page, value }),
        1 => (page(), 0..700usize).prop_map(|(first, count)| Action::Populate { first, count }),
        1 => (page(), 0..900usize).prop_map(|(first, count)| Action::Discard { first, count }),
        1 => (page(), 0..600usize, any::<u8>())
            .prop_map(|(first, count, value)| Action::Stream { first, count, value }),
        1 => (0..=PAGES).prop_map(|pages| Action::SetLimit { pages }),
        1 => Just(Action::Measure),
        1 => Just(Action::Reset),
    ]
}

fn content() -> impl Strategy<Value = Content> {
    prop_oneof![
        2 => Just(Content::Zero),
        1 => any::<u8>().prop_map(Content::Repeat),
        1 => (0..=PAGES * page_size(), any::<bool>())
            .prop_map(|(len, file)| Content::Image { len, file }),
        2 => (0..=PAGES * page_size()).prop_map(|len| Content::Shared { len }),
        1 => Just(Content::Function),
    ]
}

fn setup() -> impl Strategy<Value = Setup> {
    let budget = proptest::option::of(1usize..1400);
    let limit = prop_oneof![2 => Just(PAGES), 1 => 0..PAGES];
    let keep = prop_oneof![Just(0), 0..PAGES];
    let window = prop::sample::select(&WINDOWS[..]);
    let switches = any::<(bool, bool)>();
    (content(), window, budget, limit, switches, keep).prop_map(
        |(content, window, budget, limit, (lending, huge_pages), keep)| Setup {
            pages: PAGES,
            content,
            window,
            budget,
            limit,
            lending,
            huge_pages,
            keep,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn counters_and_contents_agree_with_a_model(
        setup in setup(),
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        run(setup, actions);
    }
}

#[test]
fn a_budget_can_be_used_to_the_last_page_again_and_again() {
    for window in [Window::Adaptive, Window::Pages(16), Window::Pages(512)] {
        let budget = 1000 * page_size();
        let arena = Arena::builder(1 << 30).budget(budget).window(window).reserve().unwrap();
        for round in 0..5 {
            let base = round << 24;
            (0..1000).for_each(|page| store(&arena, base + page * page_size(), 1));
            assert_eq!(arena.stats().resident_bytes, budget, "{window:?}");
            assert_eq!(arena_rss(&arena), budget);
            discard(&arena, base..base + (1 << 23));
        }
        assert_eq!(arena.stats().peak_resident_bytes, budget);
    }
}
