//! Which instances are idle: stacks of their numbers, without a lock, so that a fork at any moment
//! copies them whole.
//!
//! ```text
//!  | a shelf for each of a few threads ...  | cold: idle without memory | spoilt: not reset |
//! ```
//! A thread puts what it releases on its own shelf and takes from there first: what was released last
//! is warm in its processor's caches.

use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use core::cell::Cell;

/// A number that ends a stack.
const END: u32 = u32::MAX;

/// A stack of numbers, below `links.len()`, each of which is in one stack at most.
///
/// The head is the number on top, and above it a count of the changes: a thread that was about to pop a
/// number while others popped it and pushed it again does not take its old link for the new one.
#[repr(align(128))]
pub(super) struct Shelf {
    head: AtomicU64,
    /// Instances that were acquired from here, and released to here.
    pub(super) acquired: AtomicU64,
    pub(super) released: AtomicU64,
}

impl Shelf {
    pub(super) const fn new() -> Self {
        Self {
            head: AtomicU64::new(END as u64),
            acquired: AtomicU64::new(0),
            released: AtomicU64::new(0),
        }
    }

    /// The state of the stack: equal states are the same stack, unchanged in between.
    pub(super) fn state(&self) -> u64 {
        // Acquire: what a state is compared with is read after it.
        self.head.load(Ordering::Acquire)
    }

    /// Puts a number on top.
    pub(super) fn push(&self, links: &[AtomicU32], number: u32) {
        // Relaxed: the exchange below looks again.
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            // Relaxed: published by the exchange.
            links[number as usize].store(top(head), Ordering::Relaxed);
            // Release pairs with the Acquire in `pop`: who pops the number sees its link, and what was
            // done to the instance.
            let next = changed(head, number);
            match self.head.compare_exchange_weak(head, next, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Takes the number on top.
    pub(super) fn pop(&self, links: &[AtomicU32]) -> Option<u32> {
        // Acquire pairs with the Release in `push`, here and below.
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let number = top(head);
            if number == END {
                return None;
            }
            // Relaxed: if the number has been popped since, the head has changed, and the exchange fails.
            let below = links[number as usize].load(Ordering::Relaxed);
            let next = changed(head, below);
            // Release pairs with the Acquire in `state`: who finds the stack empty sees what this thread
            // has said before about what it takes.
            match self.head.compare_exchange_weak(head, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(number),
                Err(now) => head = now,
            }
        }
    }
}

/// The number on top.
fn top(head: u64) -> u32 {
    head as u32
}

/// The head after one more change, with `number` on top.
fn changed(head: u64, number: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | u64::from(number)
}

/// A small number of this thread's own, or one that it shares with others: which shelf is its.
pub(super) fn of_thread() -> usize {
    thread_local!(static MINE: Cell<usize> = const { Cell::new(usize::MAX) });
    static NEXT: AtomicU32 = AtomicU32::new(0);
    MINE.try_with(|mine| match mine.get() {
        usize::MAX => {
            // Relaxed: any number will do.
            mine.set(NEXT.fetch_add(1, Ordering::Relaxed) as usize);
            mine.get()
        }
        number => number,
    })
    // The thread is ending.
    .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(count: usize) -> Vec<AtomicU32> {
        (0..count).map(|_| AtomicU32::new(0)).collect()
    }

    #[test]
    fn what_came_last_goes_first() {
        let (shelf, links) = (Shelf::new(), links(3));
        let empty = shelf.state();
        assert_eq!(shelf.pop(&links), None);
        assert_eq!(shelf.state(), empty);
        [2, 0, 1].into_iter().for_each(|number| shelf.push(&links, number));
        let popped: Vec<_> = core::iter::from_fn(|| shelf.pop(&links)).collect();
        assert_eq!(popped, [1, 0, 2]);
        assert_ne!(shelf.state(), empty, "empty again is another state");
    }

    /// No number is lost, and none is had twice.
    #[test]
    fn threads_share_shelves() {
        let (shelves, links) = ([Shelf::new(), Shelf::new()], links(4));
        (0..4).for_each(|number| shelves[0].push(&links, number));
        let held: Vec<_> = (0..4).map(|_| AtomicU32::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (shelves, links, held) = (&shelves, &links, &held);
                scope.spawn(move || {
                    for round in 0..50_000 {
                        let Some(number) = shelves[(thread + round) % 2].pop(links) else {
                            continue;
                        };
                        assert_eq!(held[number as usize].swap(1, Ordering::Relaxed), 0);
                        held[number as usize].store(0, Ordering::Relaxed);
                        shelves[round % 2].push(links, number);
                    }
                });
            }
        });
        let left = shelves.iter().flat_map(|it| core::iter::from_fn(|| it.pop(&links)));
        let mut left: Vec<_> = left.collect();
        left.sort_unstable();
        assert_eq!(left, [0, 1, 2, 3]);
    }
}
