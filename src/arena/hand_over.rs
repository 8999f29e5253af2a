//! Handing an arena to the kernel as a whole, for a heap to give blocks of.

use super::{Arena, engine};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::ledger::Ledger;
use crate::fault::region::Name;
use crate::fault::source::Source;
use crate::fork::OnFork;
use crate::page::CHUNK;
use core::ptr::NonNull;

/// An arena that the kernel fills by itself, seen by a heap.
pub(crate) struct HandedOver {
    pub(crate) base: usize,
    /// Bytes that may be touched, whole chunks.
    pub(crate) len: usize,
    /// In pages.
    pub(crate) budget: u64,
    pub(crate) page_shift: u32,
    /// The arena's books: who touches anything charges it before.
    pub(crate) ledger: NonNull<Ledger>,
    pub(crate) name: Name,
}

impl Arena {
    /// Empties the arena and has the kernel fill it from here on, without a signal and without regard
    /// to the budget, which is the caller's to keep.
    pub(crate) fn hand_over(&self) -> Result<HandedOver> {
        self.check_inherited(Operation::Heap)?;
        let region = self.region();
        if region.on_fork != OnFork::Inherit {
            return Err(Error::new(Operation::Heap, ErrorKind::MustBeInherited));
        }
        if region.backing.is_shared() {
            return Err(Error::new(Operation::Heap, ErrorKind::NotPrivate));
        }
        if region.backing.is_huge() {
            return Err(Error::new(Operation::Heap, ErrorKind::NotBasePages));
        }
        if !matches!(region.source, Source::Zero) {
            return Err(Error::new(Operation::Heap, ErrorKind::TemplateNotZero));
        }
        // The heap gives the pages blocks of its own, without a look at any of it.
        self.forget_former_user()?;
        // SAFETY: the arena is the caller's alone, who gives up what is in it.
        unsafe { self.discard(0..self.len())? };
        // Relaxed: read by forked children alone. Before the system call, since a child must not
        // have a signal for what its parent's heap uses.
        region.handed_over.store(1, crate::atomic::Ordering::Relaxed);
        engine::hand_over(region)?;
        Ok(HandedOver {
            base: region.base,
            len: self.limit() / CHUNK * CHUNK,
            budget: region.budget,
            page_shift: region.page_shift,
            ledger: NonNull::from(&region.ledger),
            name: region.name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both stayed for as long as the heap: bits that nobody looks at, and the recording's memory.
    #[test]
    fn poison_and_a_recording_end() {
        let arena = Arena::builder(4 * CHUNK).reserve().unwrap();
        // SAFETY: nobody uses the arena.
        unsafe { arena.poison(CHUNK / 2..3 * CHUNK) }.unwrap();
        arena.start_recording(1000).unwrap();
        arena.hand_over().unwrap();
        assert_eq!(arena.stats().poisoned_bytes, 0);
        let stopped = arena.stop_recording().unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::NotRecording);
    }
}
