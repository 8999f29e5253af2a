//! Giving pages back.

use super::Arena;
use crate::Errno;
use crate::error::{Error, Operation, Result};
use crate::fault::lend;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use core::ops::Range;
use core::ptr;

impl Arena {
    /// Gives the memory of `range` (bytes, whole pages) back: the next touch of each page sees the
    /// template again. It costs in proportion to what is present in the range.
    ///
    /// A thread that touches the range meanwhile finds either the page as it was or the template's,
    /// and the counters stay exact.
    ///
    /// # Errors
    /// - [`ErrorKind::OutOfBounds`](crate::ErrorKind::OutOfBounds),
    ///   [`ErrorKind::Unaligned`](crate::ErrorKind::Unaligned): no such range.
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os) with `EINVAL`: part of the range is locked in
    ///   memory (mlock(2)); what lies before it was discarded.
    ///
    /// # Safety
    /// The content of the range changes: no reference to memory in it may be alive, and what is
    /// read from it afterwards must be valid as the template has it.
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
    /// let page = lacuna::page_size();
    /// // SAFETY: the first byte is the arena's, and nobody holds a reference to it.
    /// unsafe {
    ///     arena.as_ptr().write(7);
    ///     arena.discard(0..page)?;
    ///     assert_eq!(arena.as_ptr().read(), 0);
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub unsafe fn discard(&self, range: Range<usize>) -> Result<()> {
        let pages = self.pages(Operation::Discard, &range)?;
        let blocked = SignalsBlocked::new();
        let chunk_pages = self.region().chunk_pages();
        let mut from = pages.start / chunk_pages;
        while let Some(index) = self.region().tables.summary().next(from) {
            let first = index * chunk_pages;
            if first >= pages.end {
                break;
            }
            let part = pages.start.saturating_sub(first)..(pages.end - first).min(chunk_pages);
            self.as_owner(&blocked, index, |region, chunk| empty(region, chunk, part))
                .unwrap_or(Ok(()))
                .map_err(|errno| {
                    Error::os(Operation::Discard, errno).range(range.start, range.end)
                })?;
            from = index + 1;
        }
        Ok(())
    }

    /// [`discard`](Self::discard)s everything.
    ///
    /// # Errors
    /// As for [`discard`](Self::discard).
    ///
    /// # Safety
    /// As for [`discard`](Self::discard), of the whole arena.
    pub unsafe fn reset(&self) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.discard(0..self.len()) }
    }
}

impl Arena {
    /// Recalls the lent chunks that reach to page `limit` or past it.
    pub(super) fn recall_from(&self, limit: usize) -> Result<()> {
        let blocked = SignalsBlocked::new();
        let mut from = limit / self.region().chunk_pages();
        while let Some(index) = lend::next_lent_from(self.region(), from) {
            let recall = |region: &Region, chunk: &Chunk<'_>| match chunk.state.is_lent() {
                true => lend::recall(region, chunk, false),
                false => Ok(()),
            };
            self.as_owner(&blocked, index, recall)
                .unwrap_or(Ok(()))
                .map_err(|errno| Error::os(Operation::SetLimit, errno))?;
            from = index + 1;
        }
        Ok(())
    }
}

/// Discards `part` of a chunk, as its owner.
fn empty(region: &Region, chunk: &Chunk<'_>, part: Range<usize>) -> Result<(), Errno> {
    if chunk.state.is_lent() {
        lend::recall(region, chunk, false)?;
    }
    let present = chunk.present();
    let start = present.next_set(part.clone());
    if start < part.end {
        // One call from the first present page to the last: the gaps between them cost nothing.
        let end = start.max(present.gap_before(part.end));
        drop_pages(region, region.pages_of(chunk.index).start + start, end - start)?;

        let lent = chunk.lent().map_or(0, |lent| lent.clear(part.clone()));
        let resident = chunk.resident.clear(part);
        region.ledger.release(resident as u64, lent as u64);
    }
    if chunk.present().is_empty() {
        region.tables.summary().clear(chunk.index);
        chunk.state.forget();
    }
    Ok(())
}

/// Has the kernel drop `count` pages from `page` on.
fn drop_pages(region: &Region, page: usize, count: usize) -> Result<(), Errno> {
    let start = ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: the pages lie in a reservation of ours, whose owner gave them up.
    let result = unsafe { libc::madvise(start, count << region.page_shift, libc::MADV_DONTNEED) };
    Errno::result(result).map(drop)
}
