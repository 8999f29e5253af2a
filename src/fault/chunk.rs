//! Who may change which pages of a chunk are present: many fillers, or one owner.
//!
//! A filler (a fault, populate) enters, installs pages, sets their bits and leaves. An owner
//! (discard, measure, or a filler that found itself alone and fills or lends the whole chunk) has
//! claimed the chunk and waited until the fillers have left; then the bits, the counters and the
//! kernel's page table stay in step while it works. Fillers never wait here: one that finds the
//! chunk claimed steps back and lets the instruction fault again.

use crate::atomic::{AtomicU32, Ordering};

/// The chunk has an owner, or one that waits for the fillers to leave.
const CLAIMED: u32 = 1 << 31;
/// The chunk is lent: the kernel fills its pages by itself.
const LENT: u32 = 1 << 30;
/// The chunk was recalled because the budget was needed: it is not lent again.
const KEPT: u32 = 1 << 29;
/// Pages that are present may be out of reach: something failed half-way (Backend::Mprotect).
const SHUT: u32 = 1 << 28;
/// Some of its pages are poisoned.
const POISONED: u32 = 1 << 27;
/// One lonely fault, counted in the bits from here on, up to [`LONELY_MAX`].
const LONELY: u32 = 1 << 16;
const LONELY_MAX: u32 = 0xff;
/// The fillers inside.
const FILLERS: u32 = LONELY - 1;

/// The state of one chunk. All zeroes is the state of an untouched chunk, so a table of these can
/// be memory that the kernel has just mapped.
#[repr(transparent)]
pub(crate) struct ChunkState(pub(crate) AtomicU32);

impl ChunkState {
    /// Becomes a filler, unless the chunk is claimed.
    pub(crate) fn enter(&self) -> bool {
        // Acquire pairs with the Release in `release`: a filler sees what the owner has cleared.
        if self.0.fetch_add(1, Ordering::Acquire) & CLAIMED == 0 {
            return true;
        }
        self.leave();
        false
    }

    /// Ends what a successful [`enter`](Self::enter) began.
    pub(crate) fn leave(&self) {
        // Release pairs with the Acquire in `is_quiet`: the owner sees the bits that were set.
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Claims the chunk for one owner; false if it has one. The claim holds once
    /// [`is_quiet`](Self::is_quiet).
    pub(crate) fn claim(&self) -> bool {
        // Acquire pairs with the Release in `release`, of the owner before.
        self.0.fetch_or(CLAIMED, Ordering::Acquire) & CLAIMED == 0
    }

    /// Whether the last filler has left a claimed chunk.
    pub(crate) fn is_quiet(&self) -> bool {
        self.0.load(Ordering::Acquire) & FILLERS == 0
    }

    /// Turns the only filler into the owner; false, and nothing changed, if there are others.
    /// [`downgrade`](Self::downgrade) turns it back.
    pub(crate) fn upgrade(&self) -> bool {
        // Relaxed: the exchange below looks again.
        let state = self.0.load(Ordering::Relaxed);
        let owned = (state & !FILLERS) | CLAIMED;
        // Acquire as in `is_quiet`: it saw the last other filler leave.
        state & (FILLERS | CLAIMED) == 1
            && self.0.compare_exchange(state, owned, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Undoes a successful [`upgrade`](Self::upgrade).
    pub(crate) fn downgrade(&self) {
        // One operation that adds a filler and takes the claim away. Release as in `release`.
        self.0.fetch_sub(CLAIMED - 1, Ordering::Release);
    }

    /// Ends what a successful [`claim`](Self::claim) began.
    pub(crate) fn release(&self) {
        self.0.fetch_and(!CLAIMED, Ordering::Release);
    }

    /// Counts a page that was installed with no present page beside it.
    pub(crate) fn count_lonely(&self) {
        // Racing threads may pass the maximum by their number, at most one for each page, for which the
        // bits above it have room.
        if self.lonely() < LONELY_MAX {
            // Release pairs with the Acquire in `lonely`.
            self.0.fetch_add(LONELY, Ordering::Release);
        }
    }

    /// How many were counted, all of whose bits are visible.
    pub(crate) fn lonely(&self) -> u32 {
        (self.0.load(Ordering::Acquire) / LONELY) & LONELY_MAX
    }

    /// Whether the chunk is lent. Exact for its owner and its fillers, since only owners change it.
    pub(crate) fn is_lent(&self) -> bool {
        self.0.load(Ordering::Relaxed) & LENT != 0
    }

    /// Whether the chunk may be lent. One with poisoned pages is not: the kernel would fill those too.
    pub(crate) fn may_be_lent(&self) -> bool {
        self.0.load(Ordering::Relaxed) & (LENT | KEPT | POISONED) == 0
    }

    /// Its owner lent it.
    pub(crate) fn set_lent(&self) {
        self.0.fetch_or(LENT, Ordering::Relaxed);
    }

    /// Its owner recalled it, for good if the budget needed that.
    pub(crate) fn set_recalled(&self, keep: bool) {
        let keep = if keep { KEPT } else { 0 };
        self.0.fetch_or(keep, Ordering::Relaxed);
        self.0.fetch_and(!LENT, Ordering::Relaxed);
    }

    /// Its owner could not make pages accessible that are present.
    pub(crate) fn set_shut(&self) {
        self.0.fetch_or(SHUT, Ordering::Relaxed);
    }

    /// Whether that ever happened.
    pub(crate) fn is_shut(&self) -> bool {
        self.0.load(Ordering::Relaxed) & SHUT != 0
    }

    /// Whether some of its pages are poisoned. Exact for its owner and its fillers, as is
    /// [`is_lent`](Self::is_lent).
    pub(crate) fn is_poisoned(&self) -> bool {
        self.0.load(Ordering::Relaxed) & POISONED != 0
    }

    /// Its owner poisoned some of its pages, or lifted the poison of the last.
    pub(crate) fn set_poisoned(&self, poisoned: bool) {
        match poisoned {
            true => self.0.fetch_or(POISONED, Ordering::Relaxed),
            false => self.0.fetch_and(!POISONED, Ordering::Relaxed),
        };
    }

    /// Its owner emptied it: what was learned of how it is used is forgotten.
    pub(crate) fn forget(&self) {
        self.0.fetch_and(CLAIMED | LENT | POISONED | FILLERS, Ordering::Relaxed);
    }
}
