//! Freed large blocks that are kept out of use for a while, and inaccessible, so that touching one is a
//! violation that names it.
//!
//! By guard pages (MADV_GUARD_INSTALL, since Linux 6.13): they split no mapping, hold for system calls and
//! in forked children, and need no userfaultfd, so that the global allocator can have them. UFFDIO_POISON
//! would need the heap registered, which mremap(2) undoes where blocks are moved, and takes five times as
//! long. On older kernels it is mprotect(2), a mapping for each block.
//!
//! What is freed gives its memory and its charge back at once. What it keeps is address space, and a page
//! table for each 2 MiB.

use super::core::{Core, Shared};
use super::pages::{Barrier, bar, unbar};
use super::span::{Kind, Span};
use super::table::{SLICE_SHIFT, SLICES};
use crate::arena::catch_segv;
use crate::fault::freed::{self, Freed};
use crate::page::CHUNK_SHIFT;

/// The most bytes of address space in quarantine, and of one block that are made inaccessible: the first.
const MOST: usize = 1 << 30;

impl Core {
    /// Takes a large block of `size` bytes that nobody uses any more out of use for a while; false, and
    /// nothing done, if that cannot be.
    ///
    /// # Safety
    /// The span is one of a large block, whose owner gives it up.
    pub(crate) unsafe fn quarantine(&self, span: &Span, size: usize) -> bool {
        if !self.poisons {
            return false;
        }
        catch_segv();
        let (start, len) = (self.table.address_of(span), self.barred(span));
        let freed = Freed { start, len, size, base: self.table.base, name: self.name };
        let Some(entry) = freed::enter(&freed).or_else(|| {
            self.release_one(&mut self.shared.lock());
            freed::enter(&freed)
        }) else {
            return false;
        };
        let Some(barrier) = bar(start, len) else {
            freed::leave(entry);
            return false;
        };
        // Those past what is barred, if there are any, and the charge of all of them.
        let pages = span.carved.replace(0) as usize;
        let rest = pages.saturating_sub(len >> self.pages.shift);
        self.pages.discard_lent(start + len, rest);
        self.pages.ledger().release(0, (pages - rest) as u64);
        // Of no other use while nobody has the block.
        span.freed.set(entry);
        span.is_full.set(barrier == Barrier::Protection);
        span.class.set(u8::from(span.kind.get() == Kind::Run));
        span.kind.set(Kind::Kept);
        let mut shared = self.shared.lock();
        shared.quarantined.push_front(span);
        shared.quarantined_bytes += len;
        while shared.quarantined_bytes > MOST && self.release_one(&mut shared) {}
        true
    }

    /// Bytes of a block's address space, or the first of them, that are made inaccessible.
    fn barred(&self, span: &Span) -> usize {
        let is_run = match span.kind.get() {
            Kind::Kept => span.class.get() == 1,
            kind => kind == Kind::Run,
        };
        let len = match is_run {
            true => (span.size.get() as usize) << SLICE_SHIFT,
            false => {
                let first = self.table.slice_of(span) / SLICES;
                (self.table.chunk(first).count.get() as usize) << CHUNK_SHIFT
            }
        };
        len.min(MOST)
    }

    /// Lets others have the addresses of the block that was freed first; false if there is none.
    fn release_one(&self, shared: &mut Shared) -> bool {
        let Some(span) = shared.quarantined.last() else { return false };
        let span = self.table.keep(span);
        shared.quarantined.remove(span);
        let (start, len) = (self.table.address_of(span), self.barred(span));
        shared.quarantined_bytes -= len;
        let barrier = if span.is_full.get() { Barrier::Protection } else { Barrier::Guard };
        let is_open = unbar(start, len, barrier);
        // Only now: who touched it before finds out whose it was.
        freed::leave(span.freed.get());
        span.is_full.set(false);
        match span.class.get() {
            // Address space that cannot be had back is never given out again.
            _ if !is_open => {}
            1 => {
                span.kind.set(Kind::None);
                shared.territory.give_slices(self.table.slice_of(span), span.size.get() as usize);
            }
            _ => self.give_extent(&mut shared.territory, span),
        }
        true
    }

    /// Lets others have the addresses of all blocks in quarantine.
    pub(crate) fn release_quarantine(&self) {
        if self.poisons {
            let mut shared = self.shared.lock();
            while self.release_one(&mut shared) {}
        }
    }
}
