//! Who may change which pages of a chunk are present: many fillers, or one owner.
//!
//! A filler (a fault, populate) enters, installs pages, sets their bits and leaves. An owner
//! (discard, measure) claims the chunk, waits until the fillers have left, and then the bits, the
//! counters and the kernel's page table stay in step while it works. Fillers never wait here: one
//! that finds the chunk claimed steps back and lets the instruction fault again.

use crate::atomic::{AtomicU32, Ordering};

/// The chunk has an owner, or one that waits for the fillers to leave.
const CLAIMED: u32 = 1 << 31;

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
        self.0.load(Ordering::Acquire) == CLAIMED
    }

    /// Ends what a successful [`claim`](Self::claim) began.
    pub(crate) fn release(&self) {
        self.0.fetch_and(!CLAIMED, Ordering::Release);
    }
}
