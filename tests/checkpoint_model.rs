//! Checkpoints against a model that keeps every byte: any order of writing, reading, populating, discarding,
//! checkpoints, coming back and asking what was written.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, ErrorKind, Template, Tracking, Window};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;
use support::{WINDOWS, arena_rss, page};

/// Pages of the arena: two chunks, and a part of a third.
const PAGES: usize = 1024 + 200;

#[derive(Clone, Debug)]
enum Action {
    Write {
        at: usize,
        pages: usize,
        value: u8,
    },
    /// Bytes that are there already.
    WriteSame {
        at: usize,
    },
    Read {
        at: usize,
        pages: usize,
    },
    Populate {
        at: usize,
        pages: usize,
    },
    Discard {
        at: usize,
        pages: usize,
    },
    Checkpoint,
    Rollback,
    /// Writes the same pages and comes back, so many times.
    Rounds {
        at: usize,
        pages: usize,
        rounds: usize,
    },
    Written,
    Forget,
    Measure,
}

fn action() -> impl Strategy<Value = Action> {
    let at = || prop_oneof![3 => 0usize..40, 2 => 480usize..560, 2 => 0..PAGES];
    let pages = || prop_oneof![6 => 1usize..4, 2 => 1usize..60, 1 => 400usize..PAGES];
    prop_oneof![
        10 => (at(), pages(), any::<u8>())
            .prop_map(|(at, pages, value)| Action::Write { at, pages, value }),
        2 => at().prop_map(|at| Action::WriteSame { at }),
        4 => (at(), pages()).prop_map(|(at, pages)| Action::Read { at, pages }),
        2 => (at(), pages()).prop_map(|(at, pages)| Action::Populate { at, pages }),
        3 => (at(), pages()).prop_map(|(at, pages)| Action::Discard { at, pages }),
        3 => Just(Action::Checkpoint),
        5 => Just(Action::Rollback),
        2 => (at(), pages(), 1usize..5)
            .prop_map(|(at, pages, rounds)| Action::Rounds { at, pages, rounds }),
        4 => Just(Action::Written),
        1 => Just(Action::Forget),
        2 => Just(Action::Measure),
    ]
}

/// What the arena should be. A page's content is the template's, and one byte that is written.
struct Model {
    template: Vec<u8>,
    /// The byte in each page that is written, and which pages are present for certain.
    now: Vec<u8>,
    present: BTreeSet<usize>,
    saved: Option<Saved>,
}

struct Saved {
    content: Vec<u8>,
    held: BTreeSet<usize>,
    /// Written since, hot pages as `hot` says.
    written: BTreeSet<usize>,
    /// Pages that may be hot: each time they were written they may have been compared instead.
    maybe_hot: BTreeSet<usize>,
    /// Once it was asked what was written, no page becomes hot.
    exact: bool,
}

struct World {
    arena: Arena,
    model: Model,
    tracking: Tracking,
}

/// The byte of a page that is written and read.
const OFFSET: usize = 77;

impl World {
    fn new(tracking: Tracking, window: Window, template: usize, huge: bool) -> Self {
        let (template, content) = match template {
            0 => (Template::zero(), vec![0; PAGES]),
            1 => (Template::repeat(&9u8).unwrap(), vec![9; PAGES]),
            2 => {
                let image = support::noise(PAGES / 2 * page(), 5);
                let bytes = (0..PAGES).map(|at| *image.get(at * page() + OFFSET).unwrap_or(&0));
                (Template::bytes(&image).unwrap(), bytes.collect())
            }
            _ => {
                let image = support::noise(PAGES / 2 * page(), 6);
                let bytes = (0..PAGES).map(|at| *image.get(at * page() + OFFSET).unwrap_or(&0));
                (Template::file(&support::file_of(&image)).unwrap(), bytes.collect())
            }
        };
        let builder = Arena::builder(PAGES * page()).backend(Backend::Userfaultfd);
        let builder = builder.tracking(tracking).window(window).template(template);
        let arena = builder.huge_pages(huge).reserve().unwrap();
        let now: Vec<u8> = content;
        let model = Model { template: now.clone(), now, present: BTreeSet::new(), saved: None };
        Self { arena, model, tracking }
    }

    fn run(&mut self, action: &Action) {
        let range = |at: usize, pages: usize| at..(at + pages).min(PAGES);
        match *action {
            Action::Write { at, pages, value } => self.write(range(at, pages), value),
            Action::WriteSame { at } => self.write(at..at + 1, self.model.now[at]),
            Action::Read { at, pages } => range(at, pages).for_each(|at| self.check(at)),
            Action::Populate { at, pages } => self.populate(range(at, pages)),
            Action::Discard { at, pages } => self.discard(range(at, pages)),
            Action::Checkpoint => self.checkpoint(),
            Action::Rollback => self.rollback(),
            Action::Rounds { at, pages, rounds } => {
                for round in 0..rounds {
                    self.write(range(at, pages), round as u8);
                    self.rollback();
                }
            }
            Action::Written => self.written(),
            Action::Forget => {
                self.arena.forget_checkpoint();
                self.model.saved = None;
            }
            Action::Measure => self.measure(),
        }
    }

    fn check(&mut self, at: usize) {
        assert_eq!(
            support::load(&self.arena, at * page() + OFFSET),
            self.model.now[at],
            "page {at}"
        );
        self.model.present.insert(at);
    }

    fn write(&mut self, pages: Range<usize>, value: u8) {
        for at in pages {
            support::store(&self.arena, at * page() + OFFSET, value);
            self.model.now[at] = value;
            self.model.present.insert(at);
            if let Some(saved) = &mut self.model.saved {
                saved.written.insert(at);
            }
        }
    }

    fn populate(&mut self, pages: Range<usize>) {
        self.arena.populate(pages.start * page()..pages.end * page()).unwrap();
        self.model.present.extend(pages.clone());
        if let (Some(saved), Tracking::Signal) = (&mut self.model.saved, self.tracking) {
            saved.written.extend(pages);
        }
    }

    fn discard(&mut self, pages: Range<usize>) {
        // What was present for certain is asked, since windows and huge pages make more so.
        let present = self.present();
        support::discard(&self.arena, pages.start * page()..pages.end * page());
        for at in pages {
            self.model.now[at] = self.model.template[at];
            self.model.present.remove(&at);
            if let Some(saved) = &mut self.model.saved {
                saved.maybe_hot.remove(&at);
                match saved.held.contains(&at) {
                    true if present.contains(&at) => saved.written.insert(at),
                    true => true,
                    false => saved.written.remove(&at),
                };
            }
        }
    }

    /// The pages that are present.
    fn present(&self) -> BTreeSet<usize> {
        let pages = |range: Range<usize>| range.start / page()..range.end / page();
        let present: BTreeSet<usize> = self.arena.populated().flat_map(pages).collect();
        assert!(self.model.present.is_subset(&present));
        present
    }

    fn checkpoint(&mut self) {
        self.arena.checkpoint().unwrap();
        self.model.saved = Some(Saved {
            content: self.model.now.clone(),
            held: self.present(),
            written: BTreeSet::new(),
            maybe_hot: BTreeSet::new(),
            exact: false,
        });
    }

    fn rollback(&mut self) {
        // SAFETY: nobody has a reference into the arena, and every byte is valid.
        let result = unsafe { self.arena.rollback() };
        let Some(saved) = &mut self.model.saved else {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::NoCheckpoint);
            return;
        };
        result.unwrap();
        self.model.now.clone_from(&saved.content);
        if !saved.exact {
            saved.maybe_hot.extend(&saved.written);
        }
        saved.written.clear();
        self.model.present.clone_from(&saved.held);
        let more: Vec<usize> = self.present().difference(&self.model.present).copied().collect();
        let saved = self.model.saved.as_ref().unwrap();
        // What is not held stays for being hot alone.
        assert!(more.iter().all(|at| saved.maybe_hot.contains(at)), "{} pages", more.len());
    }

    fn written(&mut self) {
        let result = self.arena.written();
        let Some(saved) = &mut self.model.saved else {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::NoCheckpoint);
            return;
        };
        let ranges = result.unwrap();
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        let pages = |range: Range<usize>| range.start / page()..range.end / page();
        let told: BTreeSet<usize> = ranges.into_iter().flat_map(pages).collect();
        // A hot page that was written with what it held may or may not be told.
        for at in std::mem::take(&mut saved.maybe_hot) {
            if self.model.now[at] == saved.content[at] && !told.contains(&at) {
                saved.written.remove(&at);
            }
        }
        assert_eq!(told, saved.written, "{:?}", self.tracking);
        saved.exact = true;
    }

    fn measure(&self) {
        let stats = self.arena.measure().unwrap();
        assert_eq!(stats.resident_bytes, arena_rss(&self.arena));
        let charged = stats.resident_bytes + stats.lent_bytes;
        let present = self.present().len() * page();
        // Of a lent chunk all is charged, but there is none while there is a checkpoint.
        assert!(charged == present || self.model.saved.is_none() && charged > present);
    }
}

/// Whether this kernel has both.
fn is_there(tracking: Tracking) -> bool {
    let builder = Arena::builder(1).backend(Backend::Userfaultfd).tracking(tracking);
    match builder.reserve().unwrap().checkpoint() {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            eprintln!("NOT RUN: this kernel has no {tracking:?} tracking");
            false
        }
        result => {
            result.unwrap();
            true
        }
    }
}

fn agree(tracking: Tracking) {
    if !is_there(tracking) {
        return;
    }
    let actions = proptest::collection::vec(action(), 1..60);
    let settings = (0usize..WINDOWS.len(), 0usize..4, any::<bool>());
    let config = ProptestConfig { cases: 96, ..ProptestConfig::default() };
    proptest!(config, |(actions in actions, (window, template, huge) in settings)| {
        let mut world = World::new(tracking, WINDOWS[window], template, huge);
        for action in &actions {
            world.run(action);
        }
        (0..PAGES).for_each(|at| world.check(at));
        world.measure();
    });
}

#[test]
fn tracking_by_the_kernel_agrees_with_a_model() {
    agree(Tracking::Kernel);
}

#[test]
fn tracking_by_signals_agrees_with_a_model() {
    agree(Tracking::Signal);
}
