//! Some plots, the threads that work on them, and what must hold whenever they rest.

use crate::books::Memory;
use crate::heap::Shared;
use crate::plot::{Plot, Sharing};
use crate::support::{Rng, page};
use crate::tally::{TALLY, count};
use crate::worker::Worker;
use crate::{forks, storm};
use lacuna::Window;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Threads that work at once.
const WORKERS: usize = 4;
/// Pages of a mixed plot at most, and at least.
const MOST_PAGES: usize = 6000;
const LEAST_PAGES: usize = 1500;

/// Plots and their models.
pub(crate) struct World {
    pub(crate) plots: Vec<Plot>,
    pub(crate) workers: Vec<Worker>,
    pub(crate) heap: Shared,
    rng: Rng,
}

impl World {
    fn new(mut rng: Rng, plots: Vec<Plot>, workers: usize) -> Self {
        let seed = rng.next();
        let workers = (0..workers).map(|me| Worker::new(me, workers, seed, &plots)).collect();
        Self { plots, workers, heap: Shared::new(), rng }
    }

    /// Plots of all kinds.
    pub(crate) fn mixed(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let plot = |rng: &mut Rng| {
            let pages = LEAST_PAGES + rng.below(MOST_PAGES - LEAST_PAGES);
            Plot::random(rng, pages, WORKERS)
        };
        let plots = (0..6).map(|_| plot(&mut rng)).collect();
        Self::new(rng, plots, WORKERS)
    }

    /// Plots that fault a page at a time.
    pub(crate) fn faulting(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let plots = (0..3).map(|_| Plot::faulting(&mut rng, 16 << 10)).collect();
        // As many threads as there are processors here: it is faults that are wanted.
        Self::new(rng, plots, thread::available_parallelism().map_or(2, usize::from).min(WORKERS))
    }

    /// Works on all of it for a while, with signals or forks, and checks it afterwards.
    pub(crate) fn mix(&mut self, time: Duration, storms: bool) {
        let stop = AtomicBool::new(false);
        let (plots, heap) = (&self.plots, &self.heap);
        thread::scope(|scope| {
            let stop = &stop;
            for worker in &mut self.workers {
                scope.spawn(move || {
                    let _target = storm::Target::new();
                    worker.mix(plots, heap, stop);
                });
            }
            // By turns: a handler that faults on top of the C library's malloc waits for a fork to be
            // over, which waits for malloc's lock.
            if storms {
                storm::set_timer(7_000);
                scope.spawn(move || storm::send_until(stop));
            } else {
                scope.spawn(move || forks::fork_until(plots, stop));
            }
            thread::sleep(time);
            storm::set_timer(0);
            stop.store(true, Ordering::Relaxed);
        });
        for worker in &mut self.workers {
            worker.blocks.free_all(&self.heap);
        }
        self.heap.check_empty();
        self.check();
        forks::fork(|| {
            self.check();
            forks::go_on(&self.plots);
        });
        self.reset_some();
        self.check();
    }

    /// Faults for a while.
    pub(crate) fn fault(&mut self, time: Duration) {
        let stop = AtomicBool::new(false);
        let plots = &self.plots;
        thread::scope(|scope| {
            for worker in &mut self.workers {
                scope.spawn(|| worker.fault(plots, &stop));
            }
            thread::sleep(time);
            stop.store(true, Ordering::Relaxed);
        });
        self.check();
    }

    /// Whatever is true while nobody works: contents, counters, what the kernel says.
    pub(crate) fn check(&self) {
        storm::check();
        for (number, plot) in self.plots.iter().enumerate() {
            match plot.sharing {
                Sharing::All => forks::check_plausible(plot),
                Sharing::Stripes(_) => self.check_stripes(plot, number),
            }
        }
        let measured = self.plots.iter().map(|plot| plot.arena.measure().unwrap());
        let measured: Vec<_> = measured.collect();
        let memory = Memory::look();
        for (plot, stats) in self.plots.iter().zip(measured) {
            let start = plot.arena.as_ptr().addr();
            let rss = memory.within(&(start..start + plot.arena.len()));
            assert_eq!(stats.resident_bytes, rss, "arena {}: {plot:?}", plot.id);
            let charged = stats.resident_bytes + stats.lent_bytes;
            assert!(stats.budget_bytes.is_none_or(|most| charged <= most), "{plot:?}");
            assert!(stats.peak_resident_bytes >= stats.resident_bytes, "{plot:?}");
        }
    }

    fn check_stripes(&self, plot: &Plot, number: usize) {
        let mut present = 0;
        for worker in &self.workers {
            worker.check_present(plot, number, 0..plot.pages + plot.tail);
            present += worker.models[number].present;
        }
        let stats = plot.arena.stats();
        let charged = stats.resident_bytes + stats.lent_bytes;
        // A window of one page installs what is touched, and nothing else.
        if plot.window == Window::Pages(1) {
            assert_eq!(charged, present * page(), "arena {}: {plot:?}", plot.id);
        } else {
            assert!(charged >= present * page(), "arena {}: {plot:?}", plot.id);
        }
    }

    /// Brings some plots back to their templates.
    fn reset_some(&mut self) {
        for (number, plot) in self.plots.iter().enumerate() {
            if self.rng.below(2) == 0 {
                continue;
            }
            // SAFETY: nobody works, and every value is valid.
            unsafe { plot.arena.reset() }.unwrap();
            count(&TALLY.resets);
            if !plot.keeps {
                let stats = plot.arena.stats();
                assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, 0), "{plot:?}");
            }
            self.workers.iter_mut().for_each(|worker| worker.forget(plot, number));
        }
    }
}
