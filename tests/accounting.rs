//! Counters and contents against a model, and against the kernel.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Template, Window, page_size};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{arena_rss, discard, load, read_into, store};

const PAGES: usize = 1300;

/// What a program may do to an arena, in pages.
#[derive(Clone, Copy, Debug)]
enum Action {
    Write {
        page: usize,
        value: u8,
    },
    Read {
        page: usize,
    },
    /// A system call writes to a page, which works if it is present.
    Kernel {
        page: usize,
        value: u8,
    },
    Populate {
        first: usize,
        count: usize,
    },
    Discard {
        first: usize,
        count: usize,
    },
    /// A run of writes.
    Stream {
        first: usize,
        count: usize,
        value: u8,
    },
    Measure,
    Reset,
}

fn action() -> impl Strategy<Value = Action> {
    let page = || 0..PAGES;
    prop_oneof![
        4 => (page(), any::<u8>()).prop_map(|(page, value)| Action::Write { page, value }),
        3 => page().prop_map(|page| Action::Read { page }),
        2 => (page(), any::<u8>()).prop_map(|(page, value)| Action::Kernel { page, value }),
        1 => (page(), 0..700usize).prop_map(|(first, count)| Action::Populate { first, count }),
        1 => (page(), 0..900usize).prop_map(|(first, count)| Action::Discard { first, count }),
        1 => (page(), 0..600usize, any::<u8>())
            .prop_map(|(first, count, value)| Action::Stream { first, count, value }),
        1 => Just(Action::Measure),
        1 => Just(Action::Reset),
    ]
}

/// The first byte of a page that is untouched.
type Untouched = fn(usize) -> u8;

fn template(kind: u8) -> (Template, Untouched) {
    fn number(index: u64, page: &mut [u8]) {
        page.fill(index as u8);
    }
    match kind {
        0 => (Template::zero(), |_| 0),
        1 => (Template::repeat(&[3u8, 1, 4]).unwrap(), |page| [3, 1, 4][page * page_size() % 3]),
        2 => (Template::bytes(vec![8; 700 * page_size() + 1]).unwrap(), |page| {
            if page <= 700 { 8 } else { 0 }
        }),
        // SAFETY: it writes to the page, nothing else.
        _ => (unsafe { Template::generate(number) }, |page| page as u8),
    }
}

/// An arena, and what it should contain.
struct Model {
    arena: Arena,
    untouched: Untouched,
    written: BTreeMap<usize, u8>,
    peak: usize,
}

impl Model {
    fn present(&self, page: usize) -> bool {
        self.arena.populated().any(|run| run.contains(&(page * page_size())))
    }

    /// Whether a touch of the page fits the budget: pages that are not charged yet need room.
    fn may_touch(&self, page: usize) -> bool {
        self.arena.stats().budget_left() != Some(0) || self.present(page)
    }

    fn write(&mut self, page: usize, value: u8) {
        if self.may_touch(page) {
            store(&self.arena, page * page_size(), value);
            self.written.insert(page, value);
        }
    }

    fn run(&mut self, action: Action) {
        let range = |first: usize, count: usize| first..(first + count).min(PAGES);
        let bytes =
            |pages: std::ops::Range<usize>| pages.start * page_size()..pages.end * page_size();
        match action {
            Action::Write { page, value } => self.write(page, value),
            Action::Read { page } => {
                if self.may_touch(page) {
                    self.check(page);
                }
            }
            Action::Kernel { page, value } => {
                let present = self.present(page);
                let result = read_into(&self.arena, page * page_size(), &[value]);
                // A lent chunk is filled by the kernel whether the page is there or not.
                assert!(result.is_ok() || !present);
                if result.is_ok() {
                    self.written.insert(page, value);
                }
            }
            Action::Populate { first, count } => {
                let done = self.arena.populate(bytes(range(first, count)));
                assert!(done.is_ok() || self.arena.stats().budget_left() == Some(0), "{done:?}");
            }
            Action::Discard { first, count } => {
                discard(&self.arena, bytes(range(first, count)));
                self.written.retain(|page, _| !range(first, count).contains(page));
            }
            Action::Stream { first, count, value } => {
                range(first, count).for_each(|page| self.write(page, value));
            }
            Action::Measure => _ = self.arena.measure().unwrap(),
            Action::Reset => {
                // SAFETY: nobody has a reference into the arena.
                unsafe { self.arena.reset() }.unwrap();
                self.written.clear();
            }
        }
    }

    fn check(&self, page: usize) {
        let want = self.written.get(&page).copied().unwrap_or((self.untouched)(page));
        assert_eq!(load(&self.arena, page * page_size()), want, "page {page}");
    }

    /// The counters against the kernel's, after each step.
    fn check_counters(&mut self) {
        let stats = self.arena.stats();
        self.peak = self.peak.max(stats.resident_bytes);
        assert_eq!(stats.peak_resident_bytes, self.peak);
        let charged = stats.resident_bytes + stats.lent_bytes;
        assert!(stats.budget_bytes.is_none_or(|budget| charged <= budget), "{stats}");
        let rss = arena_rss(&self.arena);
        if stats.lent_bytes == 0 {
            assert_eq!(stats.resident_bytes, rss);
        }
        assert!(stats.resident_bytes <= rss && rss <= charged, "{rss} in the kernel, {stats}");
        let populated: usize = self.arena.populated().map(|run| run.len()).sum();
        assert!(populated <= charged && populated >= rss);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn counters_and_contents_agree_with_a_model(
        actions in proptest::collection::vec(action(), 1..60),
        kind in 0u8..4,
        window in prop_oneof![
            Just(Window::Adaptive), Just(Window::Pages(1)), Just(Window::Pages(16)),
            Just(Window::Pages(512))
        ],
        budget in proptest::option::of(1usize..1400),
        lending: bool,
        huge_pages: bool,
        keep in prop_oneof![Just(0), 0..PAGES],
    ) {
        let (template, untouched) = template(kind);
        let mut builder = Arena::builder(PAGES * page_size())
            .template(template).window(window).lending(lending)
            .huge_pages(huge_pages).keep_resident(keep * page_size());
        if let Some(pages) = budget {
            builder = builder.budget(pages * page_size());
        }
        let arena = builder.reserve().unwrap();
        let mut model = Model { arena, untouched, written: BTreeMap::new(), peak: 0 };
        for action in actions {
            model.run(action);
            model.check_counters();
        }
        let stats = model.arena.measure().unwrap();
        prop_assert_eq!(stats.resident_bytes, arena_rss(&model.arena));
        for page in model.written.keys() {
            model.check(*page);
        }
        for run in model.arena.populated() {
            (run.start / page_size()..run.end / page_size()).for_each(|page| model.check(page));
        }
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
