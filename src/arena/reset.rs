//! Coming back to the template: some pages restored in place, the others given back.

use super::Arena;
use crate::error::Result;
use crate::fault::bits::Snapshot;
use crate::fault::region::Region;
use crate::fault::source::Content;
use crate::fault::tables::Chunk;
use core::ops::Range;
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
            // As a filler: a page that was dropped behind our back faults here.
            let restored = self.as_filler(index, |region, chunk| {
                // SAFETY: nobody else accesses the pages.
                unsafe { restore_chunk(region, chunk, allowed) }
            });
            let Some(restored) = restored else { break };
            let pages = self.region().pages_of(index);
            self.discard_set(pages.start, &restored.lent)?;
            if restored.end < pages.len() {
                return Ok(pages.start + restored.end);
            }
            allowed -= restored.pages;
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

/// What became of the first pages of a chunk.
struct Restored {
    /// Pages restored.
    pages: usize,
    /// How far it came, in pages of the chunk.
    end: usize,
    /// Pages before that which the kernel may have filled by itself: what they hold is not known.
    lent: Snapshot,
}

/// Restores at most `allowed` resident pages of a chunk, from its first on, as a filler.
///
/// # Safety
/// Nobody else accesses the pages.
unsafe fn restore_chunk(region: &Region, chunk: &Chunk<'_>, allowed: usize) -> Restored {
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
        // SAFETY: the pages are resident, and nobody else accesses them.
        unsafe { write_template(region, whole.start + start..whole.start + end) };
        pages += end - start;
    }
    // Past the last restored one there may be no other before the limit, where the rest begins.
    Restored { pages, end, lent: lent.before(end) }
}

/// Writes the template's content over `pages` of the reservation.
///
/// # Safety
/// They are resident, and nobody else accesses them.
unsafe fn write_template(region: &Region, pages: Range<usize>) {
    for page in pages {
        let target: *mut u8 = ptr::with_exposed_provenance_mut(region.address_of(page));
        // SAFETY: as the caller promises; the source is ordinary memory, or nothing is kept.
        unsafe {
            if !matches!(region.source.at(page, region.page_shift), Content::Bytes { .. }) {
                target.write_bytes(0, 1 << region.page_shift);
            }
            region.source.write(page, 1, region.page_shift, target);
        }
    }
}
