//! Coming back to the template: some pages restored in place, the others given back.

use super::{Arena, inherit};
use crate::error::{Operation, Result};
use crate::fault::bits::Snapshot;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::source::Content;
use crate::fault::tables::Chunk;
use core::ptr;

impl Arena {
    /// Brings everything back to the template. It costs in proportion to what is present.
    ///
    /// Without [`keep_resident`](super::ArenaBuilder::keep_resident) it is a
    /// [`discard`](Self::discard) of the whole arena. With it, so many bytes of what is present, from
    /// the start of the arena on, keep their memory and get the template's content written over what
    /// they hold, which is many times faster than giving them back and faulting them in again: no
    /// fault, no system call, no flush of any processor's TLB. The rest is discarded, and so are
    /// pages past the limit and those that the kernel filled by itself (`lent_bytes`).
    ///
    /// # Errors
    /// As for [`discard`](Self::discard).
    ///
    /// # Safety
    /// As for [`discard`](Self::discard), of the whole arena; and with `keep_resident`, nobody else
    /// may access the arena meanwhile.
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30)
    ///     .template(lacuna::Template::repeat(&7u8)?)
    ///     .keep_resident(64 << 10)
    ///     .reserve()?;
    /// // SAFETY: the first byte is the arena's, and nobody holds a reference to it.
    /// unsafe {
    ///     arena.as_ptr().write(1);
    ///     arena.reset()?;
    ///     assert_eq!(arena.as_ptr().read(), 7);
    /// }
    /// assert_eq!(arena.stats().faults, 1);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub unsafe fn reset(&self) -> Result<()> {
        inherit::check(Operation::Discard)?;
        // SAFETY: as the caller promises.
        unsafe {
            let restored = self.restore()?;
            self.discard(restored << self.region().page_shift..self.len())
        }
    }

    /// Restores pages in place, as many as are to be kept, and discards those among them that cannot
    /// be. Tells up to which page that was done.
    ///
    /// # Safety
    /// As for `reset`.
    unsafe fn restore(&self) -> Result<usize> {
        let mut allowed = self.keep_resident;
        let mut from = 0;
        while let Some(index) = self.region().tables.summary().next(from) {
            if allowed == 0 {
                break;
            }
            // A handler that touched memory on top of this would wait for a fork of another thread's,
            // which waits for this one to leave the chunk.
            let blocked = SignalsBlocked::new();
            let plan = self.as_filler(index, |region, chunk| Plan::of(region, chunk, allowed));
            drop(blocked);
            let Some(plan) = plan else { break };
            let pages = self.region().pages_of(index);
            // Outside of the chunk: should a page have been dropped behind our back, writing to it
            // faults, and that must not happen to a thread that a fork waits for.
            // SAFETY: nobody else accesses the pages.
            unsafe { write_template(self.region(), pages.start, &plan.kept) };
            self.discard_set(pages.start, &plan.lent)?;
            if plan.end < pages.len() {
                return Ok(pages.start + plan.end);
            }
            allowed -= plan.pages;
            from = index + 1;
        }
        Ok(self.region().pages_of(from).start.min(self.region().pages))
    }

    /// Discards a set of pages of the chunk that begins at page `first`.
    fn discard_set(&self, first: usize, pages: &Snapshot) -> Result<()> {
        let count = self.region().chunk_pages();
        let shift = self.region().page_shift;
        let mut start = pages.next_set(0..count);
        while start < count {
            let end = pages.next_clear(start..count);
            // SAFETY: as the caller of `reset` promises.
            unsafe { self.discard((first + start) << shift..(first + end) << shift)? };
            start = pages.next_set(end..count);
        }
        Ok(())
    }
}

/// What becomes of the first pages of a chunk.
struct Plan {
    /// Pages to restore, and how many they are.
    kept: Snapshot,
    pages: usize,
    /// How far it comes, in pages of the chunk.
    end: usize,
    /// Pages before that which the kernel may have filled by itself: what they hold is not known.
    lent: Snapshot,
}

impl Plan {
    /// Keeps at most `allowed` resident pages of a chunk within the limit, from its first on.
    fn of(region: &Region, chunk: &Chunk<'_>, allowed: usize) -> Self {
        let whole = region.pages_of(chunk.index);
        let resident = chunk.resident.load();
        let lent = chunk.lent().map_or(Snapshot::EMPTY, |lent| lent.load());
        let limit = region.limit().clamp(whole.start, whole.end) - whole.start;
        let (mut pages, mut end) = (0, 0);
        while pages < allowed {
            let start = resident.next_set(end..limit);
            end = resident.next_clear(start..limit).min(start + (allowed - pages));
            if start == end {
                break;
            }
            pages += end - start;
        }
        Self { kept: resident.before(end), pages, end, lent: lent.before(end) }
    }
}

/// Writes the template's content over `pages` of the chunk that begins at page `first`.
///
/// # Safety
/// They are resident, and nobody else accesses them.
unsafe fn write_template(region: &Region, first: usize, pages: &Snapshot) {
    let count = region.chunk_pages();
    let mut page = pages.next_set(0..count);
    while page < count {
        let (at, shift) = (first + page, region.page_shift);
        let target: *mut u8 = ptr::with_exposed_provenance_mut(region.address_of(at));
        // SAFETY: as the caller promises; the source is ordinary memory, or nothing is kept.
        unsafe {
            if !matches!(region.source.at(at, shift), Content::Bytes { .. }) {
                target.write_bytes(0, 1 << shift);
            }
            region.source.write(at, 1, shift, target);
        }
        page = pages.next_set(page + 1..count);
    }
}
