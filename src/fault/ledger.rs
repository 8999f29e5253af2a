//! What an arena is charged for: the counters behind its budget and its statistics.
//!
//! In pages: `charged = resident + lent + promised`, and `charged <= budget` at every moment. A
//! page is promised before the kernel is asked to install it, and settled when the kernel has
//! said how far it came, so the budget cannot be passed, whatever races.

use crate::atomic::{AtomicU64, Ordering};

/// The pages that one operation has charged and not yet settled are counted above this bit.
const PROMISED_SHIFT: u32 = 40;
const CHARGED_MASK: u64 = (1 << PROMISED_SHIFT) - 1;

/// The budget of an arena without one.
pub(crate) const UNBOUNDED: u64 = u64::MAX;

/// The page counters of one arena.
pub(crate) struct Ledger {
    /// Charged pages below [`PROMISED_SHIFT`], promised pages above, in one word so that one load
    /// tells whether a refusal is final.
    account: AtomicU64,
    resident: AtomicU64,
    peak: AtomicU64,
}

/// The answer to [`Ledger::charge`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Charge {
    /// So many pages, at least one, may be installed; settle them.
    Promised(u64),
    /// The budget is full, but with promises that may be given back: try again.
    Pending,
    /// The budget is full of pages that are there.
    Exhausted,
}

/// A snapshot of a ledger, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Balance {
    pub(crate) resident: u64,
    pub(crate) lent: u64,
    pub(crate) peak: u64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { account: AtomicU64::new(0), resident: AtomicU64::new(0), peak: AtomicU64::new(0) }
    }

    /// Promises up to `want` pages, fewer where the budget has no more room.
    pub(crate) fn charge(&self, want: u64, budget: u64) -> Charge {
        // Acquire pairs with the Release in `settle`: whoever sees no promises left sees the
        // pages that the settled ones installed.
        let mut account = self.account.load(Ordering::Acquire);
        loop {
            let room = budget.min(CHARGED_MASK).saturating_sub(account & CHARGED_MASK);
            let granted = want.min(room);
            if granted == 0 {
                return match account >> PROMISED_SHIFT {
                    0 => Charge::Exhausted,
                    _ => Charge::Pending,
                };
            }
            let next = account.wrapping_add(granted | granted.wrapping_shl(PROMISED_SHIFT));
            // Relaxed on success: the promise publishes nothing.
            match self.account.compare_exchange_weak(
                account,
                next,
                Ordering::Relaxed,
                Ordering::Acquire,
            ) {
                Ok(_) => return Charge::Promised(granted),
                Err(current) => account = current,
            }
        }
    }

    /// Redeems a promise: of `promised` pages, `resident` were installed as memory and `lent` as
    /// pages that the kernel may turn into memory by itself; the rest is given back.
    pub(crate) fn settle(&self, promised: u64, resident: u64, lent: u64) {
        self.add_resident(resident);
        let unused = promised.saturating_sub(resident).saturating_sub(lent);
        // Release pairs with the Acquire in `charge`: the pages' bits, set before, are visible to
        // whoever sees this promise gone.
        self.account.fetch_sub(
            unused.wrapping_add(promised.wrapping_shl(PROMISED_SHIFT)),
            Ordering::Release,
        );
    }

    /// Gives back pages that were discarded.
    pub(crate) fn release(&self, resident: u64, lent: u64) {
        // Relaxed: counters; the pages themselves are handed over by their chunk's state.
        self.resident.fetch_sub(resident, Ordering::Relaxed);
        self.account.fetch_sub(resident.wrapping_add(lent), Ordering::Release);
    }

    /// Records that `pages` lent pages have become memory.
    pub(crate) fn convert(&self, pages: u64) {
        self.add_resident(pages);
    }

    /// Records that `pages` resident pages show the kernel's zero page again.
    pub(crate) fn revert(&self, pages: u64) {
        self.resident.fetch_sub(pages, Ordering::Relaxed);
    }

    /// Charges `pages` that somebody else installed, whatever the budget says.
    pub(crate) fn adopt(&self, pages: u64) {
        self.account.fetch_add(pages, Ordering::Relaxed);
        self.add_resident(pages);
    }

    /// Whether no promise is open.
    pub(crate) fn is_settled(&self) -> bool {
        self.account.load(Ordering::Acquire) >> PROMISED_SHIFT == 0
    }

    /// Takes back the promises of threads that are gone: those of the parent, in a forked child.
    pub(crate) fn forget_promises(&self) {
        // Relaxed: no other thread is left.
        let account = self.account.load(Ordering::Relaxed);
        let promised = account >> PROMISED_SHIFT;
        self.account.store((account & CHARGED_MASK).saturating_sub(promised), Ordering::Relaxed);
    }

    /// Starts anew: nothing is charged, and nothing ever was.
    pub(crate) fn clear(&self) {
        // Relaxed: no other thread is left, in a forked child.
        for counter in [&self.account, &self.resident, &self.peak] {
            counter.store(0, Ordering::Relaxed);
        }
    }

    /// How many pages `budget` has left; `None` if there is no bound.
    pub(crate) fn room(&self, budget: u64) -> Option<u64> {
        // Relaxed: advice; what counts is `charge`.
        let charged = self.account.load(Ordering::Relaxed) & CHARGED_MASK;
        (budget != UNBOUNDED).then(|| budget.saturating_sub(charged))
    }

    /// Whether `budget` is full of pages that are there.
    pub(crate) fn is_full(&self, budget: u64) -> bool {
        // Acquire as in `charge`.
        let account = self.account.load(Ordering::Acquire);
        account >> PROMISED_SHIFT == 0 && account & CHARGED_MASK >= budget
    }

    /// Whether `pages` more would fit into half of `budget`.
    pub(crate) fn is_roomy(&self, pages: u64, budget: u64) -> bool {
        let charged = self.account.load(Ordering::Relaxed) & CHARGED_MASK;
        charged.saturating_add(pages) <= budget / 2
    }

    /// The counters. Each is exact; together they are a moment only while nothing is installed or
    /// discarded.
    pub(crate) fn balance(&self) -> Balance {
        let account = self.account.load(Ordering::Acquire);
        let resident = self.resident.load(Ordering::Relaxed);
        let present = (account & CHARGED_MASK).saturating_sub(account >> PROMISED_SHIFT);
        Balance {
            resident,
            lent: present.saturating_sub(resident),
            peak: self.peak.load(Ordering::Relaxed).max(resident),
        }
    }

    fn add_resident(&self, pages: u64) {
        if pages == 0 {
            return;
        }
        // Relaxed: statistics; nothing else is published by them.
        let now = self.resident.fetch_add(pages, Ordering::Relaxed).wrapping_add(pages);
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
    }
}
