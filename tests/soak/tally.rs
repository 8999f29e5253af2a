//! What the soak has done so far.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::HashSet, time::Duration};

/// Counters of the whole run. Those that every page counts are kept by thread first.
pub(crate) struct Tally {
    words: AtomicU64,
    faults: AtomicU64,
    pub(crate) forks: AtomicU64,
    pub(crate) arenas: AtomicU64,
    reused: AtomicU64,
    pub(crate) signals: AtomicU64,
    pub(crate) blocks: AtomicU64,
    pub(crate) discards: AtomicU64,
    pub(crate) resets: AtomicU64,
    seen: Mutex<Option<HashSet<usize>>>,
}

pub(crate) static TALLY: Tally = Tally {
    words: AtomicU64::new(0),
    faults: AtomicU64::new(0),
    forks: AtomicU64::new(0),
    arenas: AtomicU64::new(0),
    reused: AtomicU64::new(0),
    signals: AtomicU64::new(0),
    blocks: AtomicU64::new(0),
    discards: AtomicU64::new(0),
    resets: AtomicU64::new(0),
    seen: Mutex::new(None),
};

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Tally {
    pub(crate) fn words(&self, words: usize) {
        self.words.fetch_add(words as u64, Ordering::Relaxed);
    }

    /// Faults of an arena that goes.
    pub(crate) fn faults(&self, faults: u64) {
        self.faults.fetch_add(faults, Ordering::Relaxed);
    }

    /// An arena at this address.
    pub(crate) fn arena(&self, address: usize) {
        count(&self.arenas);
        // A bounded set: addresses are few where they are reused, and that is what is counted.
        let mut seen = self.seen.lock().unwrap();
        let seen = seen.get_or_insert_with(|| HashSet::with_capacity(1 << 16));
        if seen.contains(&address) {
            count(&self.reused);
        } else if seen.len() < 1 << 15 {
            seen.insert(address);
        }
    }

    /// What was done in `time`, for people.
    pub(crate) fn report(&self, time: Duration) -> String {
        let line = |name: &str, counter: &AtomicU64| {
            let count = counter.load(Ordering::Relaxed);
            format!("\n  {name:28} {count:>15}  {:>12.0} /s", count as f64 / time.as_secs_f64())
        };
        let mut text = format!("soak: {:.0} s", time.as_secs_f64());
        for (name, counter) in [
            ("words checked", &self.words),
            ("faults resolved", &self.faults),
            ("forks, each checked", &self.forks),
            ("arenas", &self.arenas),
            ("  at a known address", &self.reused),
            ("signals that touched arenas", &self.signals),
            ("heap blocks", &self.blocks),
            ("discards", &self.discards),
            ("resets", &self.resets),
        ] {
            text += &line(name, counter);
        }
        text
    }
}
