//! What is done to the memory, and the checks that it was done to new memory.

use super::memory::{minor_faults, resident, warm};
use super::rivals::{Memory, Rival};
use super::{Contestant, Sample, page};
use std::hint::black_box;
use std::time::Instant;

/// What untouched pages shall contain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Zero,
    /// This number, over and over.
    Repeat(u32),
}

/// What a touch does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Writes the page's first byte.
    Write,
    /// Reads it.
    Read,
}

/// Which pages are touched, in order.
#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    Forward,
    Backward,
    /// These pages.
    Pages(Vec<u32>),
}

/// A workload: first touches of new memory.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) len: usize,
    pub(crate) content: Content,
    pub(crate) access: Access,
    pub(crate) pattern: Pattern,
    /// Whether the memory has a budget of no more than the touched pages, for who knows budgets.
    pub(crate) tight: bool,
}

/// Bytes warmed beyond what is touched: page tables, bookkeeping.
const WARM_SLACK: usize = 256 << 20;

/// The byte that writes leave.
const MARK: u8 = 0xA5;

impl Work {
    /// Pages that are touched in all.
    pub(crate) fn touches(&self) -> usize {
        match &self.pattern {
            Pattern::Forward | Pattern::Backward => self.len / page(),
            Pattern::Pages(pages) => pages.len(),
        }
    }

    /// Calls `visit` with the first `count` pages.
    fn visit(&self, count: usize, mut visit: impl FnMut(usize)) {
        match &self.pattern {
            Pattern::Forward => (0..count).for_each(visit),
            Pattern::Backward => (0..count).for_each(|index| visit(self.touches() - 1 - index)),
            Pattern::Pages(pages) => pages[..count].iter().for_each(|page| visit(*page as usize)),
        }
    }

    /// The timed part: touches the first `count` pages.
    fn touch(&self, base: *mut u8, count: usize) {
        let shift = page().trailing_zeros();
        match self.access {
            // SAFETY: the pages are within the memory, which only this thread uses.
            Access::Write => self.visit(count, |page| unsafe {
                base.add(page << shift).write_volatile(MARK);
            }),
            // SAFETY: as above.
            Access::Read => self.visit(count, |page| unsafe {
                black_box(base.add(page << shift).read_volatile());
            }),
        }
    }

    /// Checks that each touched page has what was written, and else what it should contain.
    fn verify(&self, memory: &dyn Memory, count: usize) {
        let expected = match self.content {
            Content::Repeat(value) if memory.has_template() => value,
            _ => 0,
        };
        let middle = page() / 2;
        self.visit(count, |index| {
            // SAFETY: the page is within the memory, aligned, and only this thread uses it.
            let (mark, word) = unsafe {
                let start = memory.base().add(index * page());
                (start.read_volatile(), start.add(middle).cast::<u32>().read_volatile())
            };
            let first = if self.access == Access::Write { MARK } else { expected as u8 };
            assert_eq!((mark, word), (first, expected), "page {index} of {}", memory.kind());
        });
    }

    /// The workload for one rival.
    pub(crate) fn contestant<'a>(&'a self, rival: &'a Rival) -> Contestant<'a> {
        Contestant::new(rival.title(), move || self.sample(rival))
    }

    /// One run: new memory, touched and checked.
    pub(crate) fn sample(&self, rival: &Rival) -> Sample {
        let count = (self.touches() / rival.share).max(1);
        warm(self.len.min(2 * count * page() + WARM_SLACK));
        let mut memory = (rival.make)(self);
        let base = memory.base();
        assert_eq!(resident(base, self.len), 0, "{}: the memory is not new", rival.name);

        let minor = minor_faults();
        let start = Instant::now();
        memory.prepare();
        self.touch(base, count);
        let time = start.elapsed();
        let minor = minor_faults() - minor;

        let faults = memory.faults().unwrap_or(minor);
        assert!(faults > 0, "{}: there was no fault", rival.name);
        let resident = resident(base, self.len);
        let touched = count * page();
        if self.access == Access::Write {
            assert!(resident >= touched, "{}: {resident} bytes for {touched}", rival.name);
        }
        memory.check(resident);
        self.verify(&*memory, count);
        Sample { time, units: count, faults: Some(faults), resident: Some(resident), touched }
    }
}
