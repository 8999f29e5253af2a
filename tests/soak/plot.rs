//! An arena of the soak: how it was made, and the words in it.

use crate::support::{Rng, file_of, page};
use crate::tally::TALLY;
use crate::words::{self, Found, PERIOD, Page, Untouched, belongs, image_word, page_words, tag};
use lacuna::{Arena, ArenaBuilder, Template, Window};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

/// Pages of a chunk, where pages are 4 KiB; elsewhere just a number.
pub(crate) const CHUNK_PAGES: usize = 512;

/// Words that are compared at once; a page has a multiple.
const BLOCK: usize = 512;

/// How threads share a plot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Each owns stripes of so many pages, and knows every word of them.
    Stripes(usize),
    /// All write everywhere, atomically.
    All,
}

/// Which pages may be touched, for a budget to be exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Touches {
    Anywhere,
    /// Never side by side, so that no window takes others along; scattered enough to be lent.
    Apart,
}

/// An arena of the soak.
pub(crate) struct Plot {
    pub(crate) arena: Arena,
    pub(crate) id: u16,
    pub(crate) untouched: Untouched,
    pub(crate) sharing: Sharing,
    pub(crate) touches: Touches,
    pub(crate) window: Window,
    /// Pages of the model.
    pub(crate) pages: usize,
    /// Pages that a worker may have present at once, where there is a budget.
    pub(crate) share: Option<usize>,
    /// Pages past those of the model, behind a limit that worker 0 moves.
    pub(crate) tail: usize,
    pub(crate) lends: bool,
    pub(crate) keeps: bool,
}

static NEXT_ID: AtomicU16 = AtomicU16::new(1);

impl Plot {
    /// A plot of `pages` pages at random, for `workers` threads.
    pub(crate) fn random(rng: &mut Rng, pages: usize, workers: usize) -> Self {
        let untouched = untouched(rng, pages);
        let window = [Window::Pages(1), Window::Pages(16), Window::Pages(512), Window::Adaptive]
            [rng.below(4)];
        let lends = rng.below(2) == 0;
        let budgeted = rng.below(3) == 0;
        let sharing = match rng.below(4) {
            0 if !budgeted => Sharing::All,
            _ => Sharing::Stripes([1, 8, 64, CHUNK_PAGES][rng.below(4)]),
        };
        let window = match window {
            Window::Pages(_) if budgeted => Window::Pages(1),
            window => window,
        };
        let touches = match window {
            Window::Adaptive if budgeted => Touches::Apart,
            _ => Touches::Anywhere,
        };
        let share = budgeted.then_some(pages / 2 / workers);
        let tail = if sharing != Sharing::All && rng.below(3) == 0 { 2 * CHUNK_PAGES } else { 0 };
        let keep = [0, pages / 3, pages][rng.below(3)];
        let mut builder = Arena::builder((pages + tail) * page())
            .template(template(untouched))
            .window(window)
            .lending(lends)
            .huge_pages(rng.below(2) == 0)
            .keep_resident(keep * page());
        if let Some(share) = share {
            // The tail is worker 0's besides.
            builder = builder.budget((share * workers + tail) * page());
        }
        if tail > 0 {
            builder = builder.limit(pages * page());
        }
        let mut plot = Self::of(builder, untouched, sharing, window, pages);
        (plot.share, plot.tail, plot.touches) = (share, tail, touches);
        (plot.lends, plot.keeps) = (lends, keep > 0);
        plot
    }

    /// A plot whose every page is a fault: the cheapest way to many of them.
    pub(crate) fn faulting(rng: &mut Rng, pages: usize) -> Self {
        let untouched = untouched(rng, pages);
        let window = Window::Pages(1);
        let builder = Arena::builder(pages * page()).template(template(untouched)).window(window);
        Self::of(builder, untouched, Sharing::Stripes(CHUNK_PAGES), window, pages)
    }

    /// A plot of an arena as the builder says.
    pub(crate) fn of(
        builder: ArenaBuilder<'_>,
        untouched: Untouched,
        sharing: Sharing,
        window: Window,
        pages: usize,
    ) -> Self {
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let arena = builder.name(&format!("plot {id}")).reserve().unwrap();
        TALLY.arena(arena.as_ptr().addr());
        let (share, tail, touches) = (None, 0, Touches::Anywhere);
        let (lends, keeps) = (false, false);
        Self { arena, id, untouched, sharing, touches, window, pages, share, tail, lends, keeps }
    }

    /// The words of page `index`, to be accessed atomically.
    pub(crate) fn words(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.pages + self.tail);
        // SAFETY: the page is within the arena and aligned, every value of a word is valid, and all
        // accesses that may race are atomic.
        unsafe {
            let start = self.arena.as_ptr().add(index * page()).cast::<AtomicU64>();
            std::slice::from_raw_parts(start, page_words())
        }
    }

    /// Writes all words of a page, or one.
    pub(crate) fn write(&self, index: usize, to: Page) {
        let first = index * page_words();
        let words = self.words(index);
        match to {
            Page::Absent | Page::Read => {}
            Page::Full(generation) => {
                for (word, index) in words.iter().zip(first..) {
                    word.store(tag(self.id, index, generation), Ordering::Relaxed);
                }
            }
            Page::Single(generation) => {
                let word = usize::from(generation) % words.len();
                words[word].store(tag(self.id, first + word, generation), Ordering::Relaxed);
            }
        }
    }

    /// Checks every word of a page that no other thread writes.
    #[track_caller]
    pub(crate) fn check(&self, index: usize, want: Page) {
        // SAFETY: within the arena and aligned; the caller owns the page, so nobody writes to it.
        let page = unsafe {
            let start = self.arena.as_ptr().add(index * page()).cast::<u64>();
            std::slice::from_raw_parts(start, page_words())
        };
        let mut content = [0; BLOCK];
        for (number, found) in page.chunks_exact(BLOCK).enumerate() {
            let first = index * page_words() + number * BLOCK;
            want.content(self.id, self.untouched, first, &mut content);
            if found != content {
                let word = (0..BLOCK).find(|&word| found[word] != content[word]).unwrap_or(0);
                self.fail(first + word, content[word], found[word], &format!("{want:?}"));
            }
        }
        TALLY.words(page.len());
    }

    /// Checks a page that others may be writing or discarding: each word is the template's or one that
    /// somebody wrote to this very place.
    #[track_caller]
    pub(crate) fn check_plausible(&self, index: usize) {
        let first = index * page_words();
        for (word, at) in self.words(index).iter().zip(first..) {
            let found = word.load(Ordering::Relaxed);
            let untouched = self.untouched.word(at);
            if found != untouched && !belongs(self.id, at, found) {
                self.fail(at, untouched, found, "the template's, or written here");
            }
        }
        TALLY.words(page_words());
    }

    #[cold]
    #[track_caller]
    fn fail(&self, word: usize, expected: u64, found: u64, why: &str) -> ! {
        panic!(
            "arena {} ({self:?}), offset {:#x} (page {}, word {} of it): expected {} ({why}), found {}",
            self.id,
            word * 8,
            word / page_words(),
            word % page_words(),
            Found(expected),
            Found(found)
        );
    }

    /// Gives pages back.
    pub(crate) fn discard(&self, pages: std::ops::Range<usize>) {
        // SAFETY: the pages are the caller's, or accessed atomically, and every value is valid.
        unsafe { self.arena.discard(pages.start * page()..pages.end * page()) }.unwrap();
    }
}

impl std::fmt::Debug for Plot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?}, {:?}, {:?}, {:?}, share {:?}, tail {}, lends {}, {}",
            self.untouched,
            self.window,
            self.sharing,
            self.touches,
            self.share,
            self.tail,
            self.lends,
            self.arena.stats()
        )
    }
}

impl Drop for Plot {
    fn drop(&mut self) {
        TALLY.faults(self.arena.stats().faults);
    }
}

/// Words of the images: three chunks and a half, and not whole pages.
fn image_words() -> usize {
    7 * CHUNK_PAGES / 2 * page_words() + 77
}

fn untouched(rng: &mut Rng, pages: usize) -> Untouched {
    let words = image_words().min(pages * page_words());
    match rng.below(5) {
        0 => Untouched::Zero,
        1 => Untouched::Repeat,
        2 => Untouched::Bytes(words),
        3 => Untouched::File(words),
        _ => Untouched::Generate,
    }
}

/// The template of what an untouched arena contains. Images are shared by all plots of their length.
pub(crate) fn template(untouched: Untouched) -> Template {
    fn generate(page_index: u64, page: &mut [u8]) {
        let first = page_index as usize * (page.len() / 8);
        for (word, index) in page.as_chunks_mut::<8>().0.iter_mut().zip(first..) {
            *word = image_word(index).to_ne_bytes();
        }
    }
    let bytes = |words: usize| -> Vec<u8> {
        (0..words).flat_map(|index| words::image_word(index).to_ne_bytes()).collect()
    };
    match untouched {
        Untouched::Zero => Template::zero(),
        Untouched::Repeat => Template::repeat(&PERIOD).unwrap(),
        Untouched::Bytes(words) if words == image_words() => {
            static SHARED: OnceLock<Template> = OnceLock::new();
            SHARED.get_or_init(|| Template::bytes(bytes(words)).unwrap()).clone()
        }
        Untouched::Bytes(words) => Template::bytes(bytes(words)).unwrap(),
        Untouched::File(words) if words == image_words() => {
            static SHARED: OnceLock<Template> = OnceLock::new();
            SHARED.get_or_init(|| Template::file(&file_of(&bytes(words))).unwrap()).clone()
        }
        Untouched::File(words) => Template::file(&file_of(&bytes(words))).unwrap(),
        // SAFETY: it computes and writes to its page, nothing else.
        Untouched::Generate => unsafe { Template::generate(generate) },
    }
}
