//! A life in which everything is used once.

use crate::support::{Rng, discard, file_of, load, numbered_pages, store};
use lacuna::seam::{self, Call, FOR_EVER};
use lacuna::{Arena, Errno, Heap, Template, page_size};
use std::alloc::{GlobalAlloc, Layout};
use std::collections::BTreeSet;

const CHUNK: usize = 2 << 20;

/// When calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// From the first arena on until there are all.
    Start,
    /// While they are used.
    Run,
}

/// What a child was told to have fail.
struct Plan {
    phase: Phase,
    call: Call,
    errno: Errno,
    times: u32,
}

impl Plan {
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<_> = text.split(' ').collect();
        let [phase, call, errno, times] = words[..] else { return None };
        Some(Self {
            phase: if phase == "Start" { Phase::Start } else { Phase::Run },
            call: *Call::ALL.iter().find(|it| format!("{it:?}") == call)?,
            errno: Errno::from_raw(errno.parse().ok()?),
            times: if times == "once" { 1 } else { FOR_EVER },
        })
    }

    fn begin(&self, phase: Phase) {
        if self.phase == phase {
            seam::fail(self.call, self.errno, 0, self.times);
        }
    }
}

/// The calls that a life without failures made in each phase, as it tells on stdout.
pub(crate) fn used(stdout: &str) -> BTreeSet<(Phase, Call)> {
    let call = |name: &str| Call::ALL.iter().copied().find(|it| format!("{it:?}") == name);
    stdout
        .lines()
        .filter_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["used", "Start", name] => Some((Phase::Start, call(name)?)),
            ["used", "Run", name] => Some((Phase::Run, call(name)?)),
            _ => None,
        })
        .collect()
}

/// Lives, with failures as `plan` says.
pub(crate) fn live(plan: &str) {
    let plan = Plan::parse(plan);
    let begin = |phase| plan.as_ref().inspect(|plan| plan.begin(phase));
    let before = counts();
    begin(Phase::Start);
    let all = All::make();
    seam::clear();
    if plan.is_none() {
        tell(Phase::Start, &before);
    }
    // Whatever failed, it works now.
    let all = all.unwrap_or_else(|| All::make().expect("nothing fails any more"));
    all.touch();
    let before = counts();
    begin(Phase::Run);
    all.run();
    seam::clear();
    if plan.is_none() {
        tell(Phase::Run, &before);
    }
    all.run();
    all.check();
    println!("\nlived");
}

fn counts() -> Vec<u32> {
    Call::ALL.iter().map(|call| seam::count(*call)).collect()
}

fn tell(phase: Phase, before: &[u32]) {
    let now = counts();
    for (index, call) in Call::ALL.iter().enumerate().filter(|(i, _)| now[*i] > before[*i]) {
        let _ = index;
        println!("\nused {phase:?} {call:?}");
    }
}

/// Passes a value on, or says what went wrong.
fn said<T>(result: lacuna::Result<T>) -> Option<T> {
    result.inspect_err(|error| println!("\nerror: {error}")).ok()
}

/// One of each.
struct All {
    zeroes: Arena,
    repeated: Arena,
    numbered: Arena,
    shared: Arena,
    heap: Heap,
    poisoning: Heap,
}

impl All {
    fn make() -> Option<Self> {
        let arena = || Arena::builder(1 << 30);
        let sevens = said(Template::repeat(&7u8))?;
        let budget = 8 * CHUNK;
        // Half of it, and a part of a page, are zeroes.
        let mut image = vec![0u8; CHUNK / 2 + 1];
        image[..CHUNK / 4].fill(9);
        let image = said(said(Template::bytes(image))?.shared())?;
        Some(Self {
            zeroes: said(arena().name("zeroes").budget(budget).reserve())?,
            repeated: said(
                arena().name("sevens").template(sevens).keep_resident(1 << 16).reserve(),
            )?,
            numbered: said(arena().name("numbers").template(numbered_pages()).reserve())?,
            shared: said(arena().name("shared").template(image).keep_resident(1 << 16).reserve())?,
            heap: said(Heap::new(said(arena().name("heap").reserve())?))?,
            poisoning: said(
                Heap::builder(said(arena().name("poisoning").reserve())?)
                    .poison_freed(true)
                    .build(),
            )?,
        })
    }

    /// Everything that arenas and heaps do.
    fn run(&self) {
        self.touch();
        said(self.zeroes.measure());
        self.share();
        self.manage();
        self.relocate();
        self.touch();
        self.allocate();
        self.poison();
        self.save();
    }

    /// Saves to a file that has no image, saves what has changed, and reads what there is.
    fn save(&self) {
        let file = file_of(b"");
        let save = |arena: &Arena| said(arena.save(&file)).is_some();
        if save(&self.zeroes) && save(&self.repeated) {
            said(Template::image(&file));
            said(lacuna::ImageInfo::verify(&file, 0));
        }
    }

    /// Streams, scattered touches that lead to lending and recalling, reads before writes.
    fn touch(&self) {
        for page in (0..2 * CHUNK).step_by(page_size()) {
            store(&self.repeated, page + 1, 1);
            assert_eq!((load(&self.repeated, page), load(&self.repeated, page + 1)), (7, 1));
        }
        let mut rng = Rng(1);
        for _ in 0..40 {
            let page = rng.below(1 << 18);
            assert_eq!(load(&self.numbered, page * page_size() + 2), page as u8);
            let offset = (100 + rng.below(4)) * CHUNK + rng.below(CHUNK / 2) / 64 * 64;
            store(&self.zeroes, offset, 3);
            assert_eq!((load(&self.zeroes, offset), load(&self.zeroes, offset + 1)), (3, 0));
            let offset = 200 * CHUNK + rng.below(CHUNK);
            assert_eq!(load(&self.zeroes, offset), 0);
        }
    }

    /// Pages that other arenas may have too, read and then written.
    fn share(&self) {
        for page in (0..CHUNK / 2).step_by(7 * page_size()) {
            let want = if page < CHUNK / 4 { 9 } else { 0 };
            assert_eq!(load(&self.shared, page), want);
            store(&self.shared, page + 1, 1);
            store(&self.shared, (page + 3 * page_size()) % (CHUNK / 2), want);
        }
        // SAFETY: nobody has a reference into the arena, and every byte is valid.
        if said(unsafe { self.shared.reset() }).is_some() {
            assert_eq!((load(&self.shared, 1), load(&self.shared, CHUNK / 2)), (9, 0));
        }
    }

    fn manage(&self) {
        said(self.numbered.populate(0..CHUNK + 8 * page_size()));
        said(self.repeated.populate(64 * CHUNK..65 * CHUNK));
        // SAFETY: nobody has a reference into the arenas, and every byte is valid.
        unsafe {
            said(self.numbered.discard(page_size()..CHUNK));
            said(self.zeroes.discard(101 * CHUNK + page_size()..103 * CHUNK));
            if said(self.repeated.reset()).is_some() {
                assert_eq!(load(&self.repeated, CHUNK + 1), 7);
            }
            said(self.zeroes.set_limit(1 << 20));
            said(self.zeroes.set_limit(1 << 30));
            said(self.zeroes.discard(0..self.zeroes.len()));
        }
        for page in [0, 1, 511, 512] {
            assert_eq!(load(&self.numbered, page * page_size() + 2), page as u8);
        }
    }

    /// Pages move from one arena to another, or stay where they were.
    fn relocate(&self) {
        let (from, to) = (300 * CHUNK, 300 * CHUNK + page_size());
        (0..CHUNK).step_by(page_size()).for_each(|at| store(&self.numbered, from + at, 5));
        // SAFETY: nobody has a reference into the arenas, and every byte is valid.
        let moved =
            said(unsafe { self.numbered.move_pages(from..from + CHUNK, &self.repeated, to) });
        if moved.is_some() {
            (0..CHUNK)
                .step_by(page_size())
                .for_each(|at| assert_eq!(load(&self.repeated, to + at), 5));
        } else {
            let is_there = |arena: &Arena, at| {
                arena.populated().any(|run| run.contains(&at)) && load(arena, at) == 5
            };
            for at in (0..CHUNK).step_by(page_size()) {
                let places = [(&self.numbered, from + at), (&self.repeated, to + at)];
                assert!(
                    places.into_iter().any(|(arena, at)| is_there(arena, at)),
                    "a page is lost"
                );
            }
        }
        // SAFETY: as above.
        unsafe {
            said(self.numbered.poison(from..from + CHUNK));
            said(self.numbered.unpoison(from..from + CHUNK));
            said(self.repeated.discard(from..from + 2 * CHUNK));
        }
    }

    /// Blocks that are poisoned when they are freed, until there is no other address space.
    fn poison(&self) {
        for size in [200_000, 5 << 20, 700 << 20, 600 << 20, 5 << 20] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the layout has a size, and the block is freed once.
            unsafe {
                let block = self.poisoning.alloc(layout);
                if block.is_null() {
                    println!("\nnull");
                    continue;
                }
                block.add(size - 1).write(1);
                self.poisoning.dealloc(block, layout);
            }
        }
    }

    /// Blocks of many sizes, one that grows, and one that is zeroed.
    fn allocate(&self) {
        let mut blocks = Vec::new();
        for round in 0..60usize {
            let layout = Layout::from_size_align(24 << (round % 18), 8).unwrap();
            // SAFETY: the layout has a size.
            let block = unsafe { self.heap.alloc_zeroed(layout) };
            if block.is_null() {
                println!("\nnull");
                continue;
            }
            // SAFETY: the block is as long as its layout says.
            unsafe {
                assert_eq!((block.read(), block.add(layout.size() - 1).read()), (0, 0));
                block.write(round as u8);
                block.add(layout.size() - 1).write(round as u8);
            }
            blocks.push((block, layout, round as u8));
        }
        for (block, layout, value) in blocks {
            // SAFETY: the block is this layout's, is grown once, and freed once.
            unsafe {
                assert_eq!(block.read(), value);
                let grown = self.heap.realloc(block, layout, 2 * layout.size());
                let (block, size) = match grown.is_null() {
                    true => (block, layout.size()),
                    false => (grown, 2 * layout.size()),
                };
                assert_eq!((block.read(), block.add(layout.size() - 1).read()), (value, value));
                self.heap.dealloc(block, Layout::from_size_align(size, 8).unwrap());
            }
        }
        self.heap.purge();
    }

    /// The books are in step with the kernel once nothing fails any more.
    fn check(&self) {
        for arena in [&self.zeroes, &self.repeated, &self.numbered, &self.shared] {
            let stats = arena.measure().unwrap();
            assert_eq!(
                stats.resident_bytes,
                crate::support::arena_memory(arena),
                "{}",
                arena.name()
            );
            assert!(
                stats.budget_bytes.is_none_or(|it| stats.resident_bytes + stats.lent_bytes <= it)
            );
            discard(arena, 0..arena.len());
            let stats = arena.stats();
            assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, 0), "{}", arena.name());
            assert_eq!(crate::support::arena_rss(arena), 0, "{}", arena.name());
        }
        assert_eq!(self.heap.stats().live_bytes, 0);
        assert_eq!(self.poisoning.stats().live_bytes, 0);
    }
}
