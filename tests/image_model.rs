//! Arenas, what was saved of them, and what was brought up again, against a model: whatever is done, and in
//! whatever order, each page is what the model says.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ImageInfo, Template, Window};
use proptest::prelude::*;
use std::fs::File;
use support::{WINDOWS, discard, file_of, load, page, store};

const PAGES: usize = 1100;

#[derive(Clone, Debug)]
enum Action {
    Write {
        page: usize,
        at: usize,
        value: u8,
    },
    Read {
        page: usize,
    },
    Discard {
        first: usize,
        count: usize,
    },
    Populate {
        first: usize,
        count: usize,
    },
    /// To the file that the arena was brought up from, if it was, or to the other one.
    Save {
        own: bool,
    },
    /// Goes on with an arena that brings up what was saved last.
    BringUp {
        window: usize,
    },
}

fn page_number() -> impl Strategy<Value = usize> {
    prop_oneof![0..20usize, 500..530usize, 1020..PAGES]
}

fn action() -> impl Strategy<Value = Action> {
    let write = (page_number(), 0..3usize, 0..4u8).prop_map(|(index, at, value)| Action::Write {
        page: index,
        at: at * 2000,
        value,
    });
    let read = page_number().prop_map(|page| Action::Read { page });
    let run = || (page_number(), 1..40usize);
    prop_oneof![
        8 => write,
        3 => read,
        2 => run().prop_map(|(first, count)| Action::Discard { first, count }),
        1 => run().prop_map(|(first, count)| Action::Populate { first, count }),
        3 => any::<bool>().prop_map(|own| Action::Save { own }),
        2 => (0..WINDOWS.len()).prop_map(|window| Action::BringUp { window }),
    ]
}

/// The bytes of each page that are looked at.
type Bytes = [u8; 3];

struct World {
    arena: Arena,
    /// What the arena has, what it goes back to, and what the file has that was saved to last.
    now: Vec<Bytes>,
    template: Vec<Bytes>,
    saved: Vec<Bytes>,
    /// The first is the one that was saved to last, and the second may be too old to look at.
    files: [File; 2],
    any: bool,
    /// Saves to the template's own file since it was brought up. After two, what is discarded may come back
    /// as any of the versions that were saved.
    own_saves: Option<u32>,
}

fn fill(index: usize) -> Bytes {
    [0, 2000, 4000].map(|at| [9, 8, 7][(index * page() + at) % 3])
}

fn reserve(template: Template, window: Window) -> Arena {
    Arena::builder(PAGES * page()).template(template).window(window).reserve().unwrap()
}

impl World {
    fn new() -> Self {
        let fills: Vec<_> = (0..PAGES).map(fill).collect();
        Self {
            arena: reserve(Template::repeat(&[9u8, 8, 7]).unwrap(), Window::Adaptive),
            now: fills.clone(),
            template: fills.clone(),
            saved: fills,
            files: [file_of(b""), file_of(b"")],
            any: false,
            own_saves: None,
        }
    }

    fn run(&mut self, action: &Action) {
        let end = |first: usize, count: usize| (first + count).min(PAGES);
        match *action {
            Action::Write { page: index, at, value } => {
                store(&self.arena, index * page() + at, value);
                self.now[index][at / 2000] = value;
            }
            Action::Read { page } => self.check(page),
            // What comes back is known while the template's places have not been written to again.
            Action::Discard { first, count } if self.own_saves.is_none_or(|saves| saves < 2) => {
                let end = end(first, count);
                discard(&self.arena, first * page()..end * page());
                self.now[first..end].copy_from_slice(&self.template[first..end]);
            }
            Action::Discard { .. } => {}
            Action::Populate { first, count } => {
                self.arena.populate(first * page()..end(first, count) * page()).unwrap();
            }
            Action::Save { own } => self.save(own),
            Action::BringUp { window } if self.any => {
                let template = Template::image(&self.files[0]).unwrap();
                self.arena = reserve(template, WINDOWS[window]);
                self.now.clone_from(&self.saved);
                self.template.clone_from(&self.saved);
                self.own_saves = Some(0);
            }
            Action::BringUp { .. } => {}
        }
    }

    fn save(&mut self, own: bool) {
        if !own {
            self.files.swap(0, 1);
            // The template's file is the other one from here on, and is saved to when they swap again.
            self.files[0] = file_of(b"");
            if self.own_saves.is_some() {
                self.own_saves = Some(0);
            }
        } else if let Some(saves) = &mut self.own_saves {
            *saves += 1;
        }
        let saved = self.arena.save(&self.files[0]).unwrap();
        let info = ImageInfo::verify(&self.files[0], 0).unwrap();
        assert_eq!((info.present_bytes, info.generation), (saved.image_bytes, saved.generation));
        let differs = (0..PAGES).filter(|index| self.now[*index] != self.saved[*index]).count();
        assert!(!own || !self.any || saved.written_bytes <= differs * page(), "{saved:?}");
        self.saved.clone_from(&self.now);
        self.any = true;
        assert_eq!(self.arena.save(&self.files[0]).unwrap().written_bytes, 0);
    }

    fn check(&self, index: usize) {
        let found = [0, 2000, 4000].map(|at| load(&self.arena, index * page() + at));
        assert_eq!(found, self.now[index], "page {index}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn arenas_and_their_images_are_what_was_done(actions in prop::collection::vec(action(), 1..60)) {
        let mut world = World::new();
        actions.iter().for_each(|action| world.run(action));
        (0..PAGES).for_each(|index| world.check(index));
        if world.any {
            world.run(&Action::BringUp { window: 0 });
            (0..PAGES).for_each(|index| world.check(index));
        }
    }
}
