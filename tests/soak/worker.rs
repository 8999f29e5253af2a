//! What one thread does to plots, and the model of the pages it owns.

use crate::heap::Blocks;
use crate::plot::{CHUNK_PAGES, Plot, Sharing, Touches};
use crate::support::{Rng, page};
use crate::tally::{TALLY, count};
use crate::words::{GENERATIONS, Page};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

/// One thread's pages of a plot.
pub(crate) struct Model {
    /// All pages of the plot and its tail; those of others stay absent.
    pub(crate) pages: Vec<Page>,
    /// How many are not.
    pub(crate) present: usize,
}

impl Model {
    fn new(plot: &Plot) -> Self {
        Self { pages: vec![Page::Absent; plot.pages + plot.tail], present: 0 }
    }

    fn set(&mut self, index: usize, to: Page) {
        self.present += usize::from(to != Page::Absent);
        self.present -= usize::from(self.pages[index] != Page::Absent);
        self.pages[index] = to;
    }
}

/// A thread of the soak.
pub(crate) struct Worker {
    pub(crate) me: usize,
    workers: usize,
    rng: Rng,
    generation: u16,
    pub(crate) models: Vec<Model>,
    pub(crate) blocks: Blocks,
}

impl Worker {
    pub(crate) fn new(me: usize, workers: usize, seed: u64, plots: &[Plot]) -> Self {
        let models = plots.iter().map(Model::new).collect();
        let rng = Rng(seed ^ (me as u64) << 56);
        Self { me, workers, rng, generation: 0, models, blocks: Blocks::default() }
    }

    /// Mixes everything until told to stop.
    pub(crate) fn mix(&mut self, plots: &[Plot], heap: &crate::heap::Shared, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            match self.rng.below(20) {
                0 => self.churn(),
                1 => self.blocks.work(heap, &mut self.rng),
                _ => {
                    let plot = self.rng.below(plots.len());
                    self.step(&plots[plot], plot);
                }
            }
        }
    }

    /// Faults as many pages as it can: each is written, checked and given back.
    pub(crate) fn fault(&mut self, plots: &[Plot], stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let number = self.rng.below(plots.len());
            let plot = &plots[number];
            let run = self.run_of(plot, CHUNK_PAGES);
            for index in run.clone() {
                let to = Page::Single(self.next_generation());
                plot.write(index, to);
                plot.check(index, to);
            }
            plot.discard(run);
            count(&TALLY.discards);
        }
    }

    fn next_generation(&mut self) -> u16 {
        self.generation = (self.generation + 1) % GENERATIONS;
        self.generation
    }

    /// One operation on a plot.
    fn step(&mut self, plot: &Plot, number: usize) {
        if plot.sharing == Sharing::All {
            return self.step_shared(plot);
        }
        match self.rng.below(16) {
            0 => self.populate(plot, number),
            1 => _ = plot.arena.measure().unwrap(),
            2 => drop(plot.arena.populated().count()),
            3 if self.me == 0 && plot.tail > 0 => self.move_limit(plot, number),
            3..6 => {
                let run = self.run(plot);
                plot.discard(run.clone());
                count(&TALLY.discards);
                run.for_each(|index| self.models[number].set(index, Page::Absent));
            }
            6..9 => {
                let run = self.run(plot);
                self.check(plot, number, run);
            }
            _ => {
                let run = self.run(plot);
                self.write(plot, number, run);
            }
        }
    }

    /// A run of pages of one stripe of this thread's.
    fn run(&mut self, plot: &Plot) -> Range<usize> {
        let longest = [1, 8, 64, CHUNK_PAGES][self.rng.below(4)];
        self.run_of(plot, longest)
    }

    fn run_of(&mut self, plot: &Plot, longest: usize) -> Range<usize> {
        let Sharing::Stripes(stripe) = plot.sharing else { return 0..0 };
        let own = plot.pages.div_ceil(stripe * self.workers);
        let first = (self.rng.below(own) * self.workers + self.me) * stripe;
        let first = first.min(plot.pages);
        let len = stripe.min(plot.pages - first);
        let skip = if longest < len { self.rng.below(len - longest) } else { 0 };
        first + skip..first + skip + len.min(longest)
    }

    /// Whether a page may be touched: where there is a budget, so many, and only some, may.
    fn may_touch(&self, plot: &Plot, number: usize, index: usize) -> bool {
        let model = &self.models[number];
        let apart = plot.touches == Touches::Anywhere
            || index.is_multiple_of(2) && !index.is_multiple_of(CHUNK_PAGES);
        // Worker 0 may have its tail besides.
        let share = plot.share.map(|share| share + if self.me == 0 { plot.tail } else { 0 });
        let fits = share.is_none_or(|share| model.present < share);
        model.pages[index] != Page::Absent || apart && fits
    }

    fn write(&mut self, plot: &Plot, number: usize, run: Range<usize>) {
        let full = self.rng.below(2) == 0;
        for index in run.clone() {
            if !self.may_touch(plot, number, index) {
                continue;
            }
            let generation = self.next_generation();
            // A word in a page that has others written would be a third kind of page.
            let is_fresh = matches!(self.models[number].pages[index], Page::Absent | Page::Read);
            let to =
                if full || !is_fresh { Page::Full(generation) } else { Page::Single(generation) };
            plot.write(index, to);
            self.models[number].set(index, to);
        }
        self.check_present(plot, number, run);
    }

    /// Checks pages, touching those that are absent.
    fn check(&mut self, plot: &Plot, number: usize, run: Range<usize>) {
        for index in run {
            if self.may_touch(plot, number, index) {
                plot.check(index, self.models[number].pages[index]);
                if self.models[number].pages[index] == Page::Absent {
                    self.models[number].set(index, Page::Read);
                }
            }
        }
    }

    /// Checks the pages of the model that are present.
    pub(crate) fn check_present(&self, plot: &Plot, number: usize, run: Range<usize>) {
        for index in run {
            let want = self.models[number].pages[index];
            if want != Page::Absent {
                plot.check(index, want);
            }
        }
    }

    /// Populates as much of a run as the budget's share allows.
    fn populate(&mut self, plot: &Plot, number: usize) {
        let run = self.run(plot);
        let len = match plot.touches {
            Touches::Anywhere => run.len(),
            Touches::Apart => run.len().min(1),
        };
        let run = run.start..run.start + len;
        let allowed = run.clone().take_while(|&index| self.may_touch(plot, number, index)).count();
        // Each page may take of the share, and the last that does is the bound.
        let model = &self.models[number];
        let absent = run.clone().filter(|&it| model.pages[it] == Page::Absent).count();
        let fits = plot.share.is_none_or(|share| model.present + absent <= share);
        if allowed < run.len() || !fits {
            return;
        }
        plot.arena.populate(run.start * page()..run.end * page()).unwrap();
        for index in run {
            if self.models[number].pages[index] == Page::Absent {
                self.models[number].set(index, Page::Read);
            }
        }
    }

    /// Raises the limit over the tail, works there, and lowers it again: what is present stays.
    fn move_limit(&mut self, plot: &Plot, number: usize) {
        let (first, end) = (plot.pages, plot.pages + plot.tail);
        plot.arena.set_limit(end * page()).unwrap();
        let start = first + self.rng.below(plot.tail);
        let run = start..end.min(start + [1, 30, 300][self.rng.below(3)]);
        let step = [1, 40][self.rng.below(2)];
        for index in run.clone().step_by(step) {
            self.write(plot, number, index..index + 1);
        }
        plot.arena.set_limit(first * page()).unwrap();
        self.check_present(plot, number, first..end);
        if self.rng.below(2) == 0 {
            plot.discard(run.clone());
            run.for_each(|index| self.models[number].set(index, Page::Absent));
        }
    }

    /// One operation where everybody works.
    fn step_shared(&mut self, plot: &Plot) {
        let first = self.rng.below(plot.pages);
        let end = plot.pages.min(first + [1, 8, 64, CHUNK_PAGES][self.rng.below(4)]);
        match self.rng.below(32) {
            0 if !plot.keeps => {
                // SAFETY: all accesses are atomic, and every value is valid.
                unsafe { plot.arena.reset() }.unwrap();
                count(&TALLY.resets);
            }
            1 => _ = plot.arena.measure().unwrap(),
            2 => plot.arena.populate(first * page()..end * page()).unwrap(),
            3..6 => {
                plot.discard(first..end);
                count(&TALLY.discards);
            }
            6..16 => (first..end).for_each(|index| plot.check_plausible(index)),
            _ => {
                for index in first..end {
                    plot.write(index, Page::Single(self.next_generation()));
                }
            }
        }
    }

    /// An arena that comes, where another was a moment ago, and goes.
    fn churn(&mut self) {
        let pages = 1 + self.rng.below(700);
        let plot = Plot::random(&mut self.rng, pages.max(8), 1);
        let mut alone = Self::new(0, 1, self.rng.next(), std::slice::from_ref(&plot));
        for _ in 0..4 {
            alone.step(&plot, 0);
        }
    }

    /// After a reset: what is present is the template's.
    pub(crate) fn forget(&mut self, plot: &Plot, number: usize) {
        let mut fresh = Model::new(plot);
        if let Sharing::Stripes(stripe) = plot.sharing {
            let present =
                plot.arena.populated().flat_map(|run| run.start / page()..run.end / page());
            for index in present {
                let mine = match index < plot.pages {
                    true => index / stripe % self.workers == self.me,
                    false => self.me == 0,
                };
                if mine {
                    fresh.set(index, Page::Read);
                }
            }
        }
        self.models[number] = fresh;
    }
}
