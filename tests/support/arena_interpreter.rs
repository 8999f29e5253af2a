//! What a program may do to an arena, done and checked against a model and against the kernel. Used
//! by the property test of arenas and by their fuzz target: each decides in its own way what to do
//! next.

use crate::support::{
    arena_memory, discard, file_of, load, noise, numbered_pages, read_into, store,
};
use lacuna::{Arena, ErrorKind, Template, Window, page_size};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

/// Most pages of an arena here: two chunks and a part of a third.
pub(crate) const PAGES: usize = 1300;

/// What a program may do, in pages of the arena.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// A byte of a page.
    Write {
        page: usize,
        at: usize,
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
    /// A run of writes, one to each page.
    Stream {
        first: usize,
        count: usize,
        value: u8,
    },
    SetLimit {
        pages: usize,
    },
    Measure,
    Reset,
}

/// What untouched pages contain.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Zero,
    /// A value of 1, 3, 8, a page's, one more than a page's or 70,000 bytes.
    Repeat(u8),
    /// So many bytes, from memory or from a file.
    Image {
        len: usize,
        file: bool,
    },
    /// The same, shared; every other page of the first half of it is of zeroes.
    Shared {
        len: usize,
    },
    Function,
}

/// Whether a page of a shared image here is of zeroes.
fn is_hole(page: usize, len: usize) -> bool {
    page % 2 == 1 && page < len / page_size() / 2
}

/// Bytes that templates are made of.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(PAGES * page_size(), 3));

const PERIODS: [usize; 6] = [1, 3, 8, 4096, 4097, 70_000];

impl Content {
    pub(crate) fn template(self) -> Template {
        fn repeat<const N: usize>() -> Template {
            Template::repeat::<[u8; N]>(NOISE.first_chunk().unwrap()).unwrap()
        }
        match self {
            Self::Zero => Template::zero(),
            Self::Repeat(which) => match which % 6 {
                0 => repeat::<{ PERIODS[0] }>(),
                1 => repeat::<{ PERIODS[1] }>(),
                2 => repeat::<{ PERIODS[2] }>(),
                3 => repeat::<{ PERIODS[3] }>(),
                4 => repeat::<{ PERIODS[4] }>(),
                _ => repeat::<{ PERIODS[5] }>(),
            },
            Self::Image { len, file: false } => Template::bytes(&NOISE[..len]).unwrap(),
            Self::Image { len, file: true } => Template::file(&file_of(&NOISE[..len])).unwrap(),
            Self::Shared { len } => {
                let mut bytes = NOISE[..len].to_vec();
                for (page, bytes) in bytes.chunks_mut(page_size()).enumerate() {
                    if is_hole(page, len) {
                        bytes.fill(0);
                    }
                }
                Template::bytes(bytes).unwrap().shared().unwrap()
            }
            Self::Function => numbered_pages(),
        }
    }

    /// The byte that is untouched at `offset`.
    pub(crate) fn byte(self, offset: usize) -> u8 {
        match self {
            Self::Zero => 0,
            Self::Repeat(which) => NOISE[offset % PERIODS[usize::from(which) % 6]],
            Self::Image { len, .. } if offset < len => NOISE[offset],
            Self::Shared { len } if offset < len && !is_hole(offset / page_size(), len) => {
                NOISE[offset]
            }
            Self::Image { .. } | Self::Shared { .. } => 0,
            Self::Function => {
                let (page, at) = (offset / page_size(), offset % page_size());
                ((page << 16) | (at / 8)).to_ne_bytes()[at % 8]
            }
        }
    }
}

/// The arena to do it to, in pages. What does not fit into `pages` is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) pages: usize,
    pub(crate) content: Content,
    pub(crate) window: Window,
    pub(crate) budget: Option<usize>,
    pub(crate) limit: usize,
    pub(crate) lending: bool,
    pub(crate) huge_pages: bool,
    pub(crate) keep: usize,
}

impl Setup {
    fn model(mut self) -> Model {
        self.limit = self.limit.min(self.pages);
        if let Content::Image { len, .. } | Content::Shared { len } = &mut self.content {
            *len = (*len).min(self.pages * page_size());
        }
        let mut builder = Arena::builder(self.pages * page_size())
            .template(self.content.template())
            .window(self.window)
            .limit(self.limit * page_size())
            .lending(self.lending)
            .huge_pages(self.huge_pages)
            .keep_resident(self.keep * page_size());
        if let Some(pages) = self.budget {
            builder = builder.budget(pages * page_size());
        }
        let arena = builder.reserve().unwrap();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        Model { arena, setup: self, written: BTreeMap::new(), peak: 0, pagemap }
    }
}

/// Does all of it to a new arena.
pub(crate) fn run(setup: Setup, actions: impl IntoIterator<Item = Action>) {
    let mut model = setup.model();
    for action in actions {
        model.run(action);
        model.check_counters();
    }
    let stats = model.arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, arena_memory(&model.arena));
    model.check_contents();
}

/// An arena, and what it should contain.
struct Model {
    arena: Arena,
    setup: Setup,
    /// By offset.
    written: BTreeMap<usize, u8>,
    peak: usize,
    pagemap: File,
}

fn bytes(pages: Range<usize>) -> Range<usize> {
    pages.start * page_size()..pages.end * page_size()
}

impl Model {
    fn run(&mut self, action: Action) {
        let pages = self.setup.pages;
        let range = |first: usize, count: usize| {
            let first = first % pages;
            first..(first + count).min(pages)
        };
        match action {
            Action::Write { page, at, value } => {
                self.write(page % pages * page_size() + at % page_size(), value);
            }
            Action::Read { page } => {
                if self.may_touch(page % pages) {
                    self.check(page % pages);
                }
            }
            Action::Kernel { page, value } => self.write_by_kernel(page % pages, value),
            Action::Populate { first, count } => self.populate(range(first, count)),
            Action::Discard { first, count } => self.discard(range(first, count)),
            Action::Stream { first, count, value } => {
                bytes(range(first, count))
                    .step_by(page_size())
                    .for_each(|offset| self.write(offset, value));
            }
            Action::SetLimit { pages: limit } => self.set_limit(limit % (pages + 1)),
            Action::Measure => _ = self.arena.measure().unwrap(),
            Action::Reset => self.reset(),
        }
    }

    fn present(&self, page: usize) -> bool {
        self.arena.populated().any(|run| run.contains(&(page * page_size())))
    }

    /// Whether a touch of the page is no violation: pages that are not charged yet need room in the
    /// budget, and to lie within the limit.
    fn may_touch(&self, page: usize) -> bool {
        let room = self.arena.stats().budget_left() != Some(0);
        (room && page < self.setup.limit) || self.present(page)
    }

    fn write(&mut self, offset: usize, value: u8) {
        if self.may_touch(offset / page_size()) {
            store(&self.arena, offset, value);
            self.written.insert(offset, value);
        }
    }

    fn write_by_kernel(&mut self, page: usize, value: u8) {
        let present = self.present(page);
        let result = read_into(&self.arena, page * page_size(), &[value]);
        // A lent chunk is filled by the kernel whether the page is there or not.
        assert!(result.is_ok() || !present);
        assert!(result.is_err() || page < self.setup.limit || present, "past the limit");
        if result.is_ok() {
            self.written.insert(page * page_size(), value);
        }
    }

    fn populate(&self, pages: Range<usize>) {
        let result = self.arena.populate(bytes(pages.clone())).map_err(|error| error.kind());
        match result {
            Ok(()) if pages.is_empty() => {}
            Ok(()) => {
                let whole = |run: Range<usize>| {
                    run.start <= bytes(pages.clone()).start && bytes(pages.clone()).end <= run.end
                };
                assert!(self.arena.populated().any(whole), "not all of it is present");
            }
            Err(ErrorKind::LimitExceeded) => assert!(pages.end > self.setup.limit),
            Err(kind) => {
                assert_eq!(kind, ErrorKind::BudgetExhausted);
                assert_eq!(self.arena.stats().budget_left(), Some(0));
            }
        }
    }

    fn discard(&mut self, pages: Range<usize>) {
        let gone = bytes(pages);
        discard(&self.arena, gone.clone());
        self.written.retain(|offset, _| !gone.contains(offset));
        let stays = |run: Range<usize>| run.start < gone.end && gone.start < run.end;
        assert!(gone.is_empty() || !self.arena.populated().any(stays), "it is present still");
    }

    fn reset(&mut self) {
        let before = self.arena.stats();
        // SAFETY: nobody has a reference into the arena.
        unsafe { self.arena.reset() }.unwrap();
        self.written.clear();
        let stats = self.arena.stats();
        // What it found written of a shared image counted as resident, before the rest was dropped.
        assert!(
            stats.peak_resident_bytes <= self.peak.max(before.resident_bytes + before.lent_bytes)
        );
        self.peak = stats.peak_resident_bytes;
        let is_shared = matches!(self.setup.content, Content::Shared { .. });
        assert!(stats.resident_bytes <= self.setup.keep * page_size(), "{stats}");
        assert!(stats.lent_bytes == 0 || is_shared);
        // Chunks of a shared image stay lent.
        let kept = stats.resident_bytes + stats.lent_bytes;
        assert!(kept <= self.setup.keep * page_size() || self.setup.lending, "{stats}");
        let limit = self.arena.limit();
        assert!(self.arena.populated().all(|run| run.end <= limit), "kept past the limit");
    }

    fn set_limit(&mut self, pages: usize) {
        self.arena.set_limit(pages * page_size()).unwrap();
        self.setup.limit = pages;
        assert_eq!(self.arena.limit(), pages * page_size());
    }

    /// Checks a page that may be touched: its ends, a byte between, and what was written.
    fn check(&self, page: usize) {
        let start = page * page_size();
        let some = [0, page_size() / 3, page_size() - 1].map(|at| start + at);
        let written = self.written.range(start..start + page_size()).map(|(offset, _)| *offset);
        for offset in some.into_iter().chain(written) {
            let want = self.written.get(&offset).copied();
            let want = want.unwrap_or_else(|| self.setup.content.byte(offset));
            assert_eq!(load(&self.arena, offset), want, "offset {offset}");
        }
    }

    /// Everything that is present, and everything that was written, which is.
    fn check_contents(&self) {
        for run in self.arena.populated() {
            (run.start / page_size()..run.end / page_size()).for_each(|page| self.check(page));
        }
        for (offset, value) in &self.written {
            assert!(self.present(offset / page_size()), "offset {offset} is gone");
            assert_eq!(load(&self.arena, *offset), *value, "offset {offset}");
        }
    }

    /// Bytes of memory that the kernel has for the arena: the pages that are there and exclusively
    /// this process's, which the zero page is not, nor a page of a file. Far cheaper than what
    /// smaps tells, which must be the same in the end.
    fn memory(&self) -> usize {
        const MEMORY: u64 = 1 << 63 | 1 << 56;
        const FILE: u64 = 1 << 61;
        let mut entries = vec![0; 8 * self.setup.pages];
        let first = self.arena.as_ptr().addr() / page_size();
        self.pagemap.read_exact_at(&mut entries, 8 * first as u64).unwrap();
        let (entries, _) = entries.as_chunks();
        let there =
            entries.iter().filter(|it| u64::from_ne_bytes(**it) & (MEMORY | FILE) == MEMORY);
        there.count() * page_size()
    }

    /// The counters against the kernel's, after each step.
    fn check_counters(&mut self) {
        let stats = self.arena.stats();
        self.peak = self.peak.max(stats.resident_bytes);
        assert_eq!(stats.peak_resident_bytes, self.peak);
        let charged = stats.resident_bytes + stats.lent_bytes;
        assert!(stats.budget_bytes.is_none_or(|budget| charged <= budget), "{stats}");
        let rss = self.memory();
        if stats.lent_bytes == 0 {
            assert_eq!(stats.resident_bytes, rss);
        }
        assert!(stats.resident_bytes <= rss && rss <= charged, "{rss} in the kernel, {stats}");
        let populated: usize = self.arena.populated().map(|run| run.len()).sum();
        assert!(populated <= charged && populated >= rss);
    }
}
