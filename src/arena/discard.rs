//! Giving pages back.

use super::{Arena, inherit};
use crate::Errno;
use crate::error::{Error, Operation, Result};
use crate::fault::admit::{note_discarded, save_held};
use crate::fault::backend::Backend;
use crate::fault::bits::Snapshot;
use crate::fault::lend;
use crate::fault::protect;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::fault::tuning::DISCARD_BATCH;
use crate::sys::pause;
use core::mem::ManuallyDrop;
use core::ops::Range;

impl Arena {
    /// Gives the memory of `range` (bytes, whole pages) back: the next touch of each page sees the
    /// template again. It costs in proportion to what is present in the range.
    ///
    /// A thread that touches the range meanwhile finds either the page as it was or the template's,
    /// and the counters stay exact. What is [poisoned](Self::poison) stays so.
    ///
    /// Where memory is shared ([`ArenaBuilder::share`](super::ArenaBuilder::share)), pages that others
    /// have installed go too, and for them as well.
    ///
    /// # Errors
    /// - [`ErrorKind::OutOfBounds`](crate::ErrorKind::OutOfBounds),
    ///   [`ErrorKind::Unaligned`](crate::ErrorKind::Unaligned): no such range.
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os) with `EINVAL`: part of the range is locked in
    ///   memory (mlock(2)); what lies before it was discarded. With `ENOMEM`: the mappings are used up
    ///   (`vm.max_map_count`), and the kernel would have to split one. With `EMFILE`: part of a lent
    ///   chunk is to go, and no descriptor is left to ask the kernel what it has become.
    /// - [`ErrorKind::ForkedWithoutHooks`](crate::ErrorKind::ForkedWithoutHooks),
    ///   [`ErrorKind::NotRearmed`](crate::ErrorKind::NotRearmed): see [`Arena`].
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os) with `ENOMEM`, also where there is a
    ///   [`checkpoint`](Self::checkpoint) that has to save what is discarded: there is no memory.
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
        inherit::check(Operation::Discard)?;
        let pages = self.pages(Operation::Discard, &range)?;
        let error = |errno| Error::os(Operation::Discard, errno).range(range.start, range.end);
        self.discard_of_others(&pages).map_err(error)?;
        let chunk_pages = self.region().chunk_pages();
        let mut chunks = pages.start / chunk_pages..pages.end.div_ceil(chunk_pages);
        let is_empty = |first: usize| first >= chunks.end;
        if self.region().tables.summary().next(chunks.start).is_none_or(is_empty) {
            return Ok(());
        }
        let _blocked = SignalsBlocked::new();
        while let Some(first) = self.region().tables.summary().next(chunks.start) {
            if first >= chunks.end {
                break;
            }
            let region = self.pin();
            let batch = Batch::claim(&region, first..chunks.end);
            if batch.chunks.is_empty() {
                // Its owner is about to be done with it.
                drop(batch);
                drop(region);
                pause(10_000);
                continue;
            }
            batch.empty(&pages).map_err(error)?;
            chunks.start = batch.chunks.end;
        }
        Ok(())
    }
}

impl Arena {
    /// Drops what `chunks`, all of them lent, hold; they stay lent, and charged.
    pub(super) fn empty_lent(&self, mut chunks: Range<usize>) -> Result<()> {
        let error = |errno| Error::os(Operation::Discard, errno);
        let _blocked = SignalsBlocked::new();
        while !chunks.is_empty() {
            let region = self.pin();
            let batch = Batch::claim(&region, chunks.clone());
            if batch.chunks.is_empty() {
                // Its owner is about to be done with it.
                drop(batch);
                drop(region);
                pause(10_000);
                continue;
            }
            let first = region.pages_of(batch.chunks.start).start;
            let pages = first..region.pages_of(batch.chunks.end - 1).end;
            match batch.iter().all(|chunk| chunk.state.is_lent()) {
                true => batch.empty_lent(pages),
                // Recalled meanwhile.
                false => batch.empty(&pages),
            }
            .map_err(error)?;
            chunks.start = batch.chunks.end;
        }
        Ok(())
    }

    /// Discards pages that other processes have installed, of which the bits here say nothing. Before
    /// those that this process has: what it installs meanwhile, in chunks that had none, is marked
    /// before, so that the walk over the marks finds it.
    fn discard_of_others(&self, pages: &Range<usize>) -> Result<(), Errno> {
        let region = self.pin();
        // A child that must not touch the memory does not have it.
        if !region.backing.is_shared() || region.is_forbidden() || pages.is_empty() {
            return Ok(());
        }
        protect::drop_pages(&region, pages.clone())
    }

    /// Recalls the lent chunks that reach to page `limit` or past it.
    pub(super) fn recall_from(&self, operation: Operation, limit: usize) -> Result<()> {
        let blocked = SignalsBlocked::new();
        let mut from = limit / self.region().chunk_pages();
        while let Some(index) = lend::next_lent_from(self.region(), from) {
            let recall = |region: &Region, chunk: &Chunk<'_>| match chunk.state.is_lent() {
                true => lend::recall(region, chunk, false),
                false => Ok(()),
            };
            self.as_owner(&blocked, index, recall)
                .unwrap_or(Ok(()))
                .map_err(|errno| Error::os(operation, errno))?;
            from = index + 1;
        }
        Ok(())
    }
}

/// Chunks side by side, all with pages, owned together: each madvise(2) flushes the TLB of every
/// processor that runs the process, so one call for many chunks is worth it.
struct Batch<'a> {
    region: &'a Region,
    chunks: Range<usize>,
}

impl<'a> Batch<'a> {
    /// Claims the chunks from the start of `range` on, until one has no pages or another owner, and
    /// waits until their fillers have left. Nobody waits for a chunk while owning another, so it
    /// ends.
    fn claim(region: &'a Region, range: Range<usize>) -> Self {
        let mut chunks = range.start..range.start;
        for index in range.take(DISCARD_BATCH) {
            let has_pages = region.tables.summary().next(index) == Some(index);
            let claimed =
                has_pages && region.tables.chunk(index).is_some_and(|it| it.state.claim());
            if !claimed {
                break;
            }
            chunks.end = index + 1;
        }
        let batch = Self { region, chunks };
        batch.iter().for_each(|chunk| chunk.await_fillers());
        batch
    }

    fn iter(&self) -> impl DoubleEndedIterator<Item = Chunk<'a>> + use<'a> {
        let tables = &self.region.tables;
        self.chunks.clone().filter_map(|index| tables.chunk(index))
    }

    /// Discards those of `pages`, of the reservation, that lie in the batch.
    fn empty(&self, pages: &Range<usize>) -> Result<(), Errno> {
        for chunk in self.iter().filter(|chunk| chunk.state.is_lent()) {
            let whole = self.part(&chunk, pages).len() == self.region.pages_of(chunk.index).len();
            let take_back = if whole { lend::take_back } else { lend::recall };
            take_back(self.region, &chunk, false)?;
        }
        if self.region.track.is_on() {
            // The checkpoint may have to come back to what they hold.
            self.iter().try_for_each(|chunk| {
                save_held(self.region, &chunk, &self.present_set(&chunk, pages))
            })?;
        }
        // One call from the first present page to the last: the gaps between them cost nothing.
        let first = self.iter().find_map(|chunk| self.present(&chunk, pages).next());
        let last = self.iter().rev().find_map(|chunk| self.present(&chunk, pages).next_back());
        if let (Some(first), Some(last)) = (first, last) {
            drop_pages(self.region, first..last + 1).inspect_err(|_| self.salvage(pages))?;
        }
        self.iter().for_each(|chunk| self.forget(&chunk, pages));
        Ok(())
    }

    /// Drops the batch's `pages`, all of lent chunks: the kernel fills them again, whatever they were. Pages
    /// without a bit stay so: they are not charged, and out of reach, since a recall failed half-way.
    fn empty_lent(&self, pages: Range<usize>) -> Result<(), Errno> {
        protect::drop_pages(self.region, pages)?;
        for chunk in self.iter() {
            let all = 0..self.region.pages_of(chunk.index).len();
            lend::lend_resident(self.region, &chunk, all);
        }
        Ok(())
    }

    /// After pages could not be dropped, all of them: what is gone counts as discarded, and what is not
    /// is made accessible again. (With userfaultfd a page that is gone comes back by itself.)
    #[cold]
    fn salvage(&self, pages: &Range<usize>) {
        if self.region.backend == Backend::Mprotect {
            for chunk in self.iter() {
                lend::release_dropped(self.region, &chunk, self.part(&chunk, pages));
                protect::reopen(self.region, &chunk, self.part(&chunk, pages));
            }
        }
    }

    /// The first and the last of `pages` that are present in `chunk`.
    fn present(
        &self,
        chunk: &Chunk<'_>,
        pages: &Range<usize>,
    ) -> impl DoubleEndedIterator<Item = usize> + use<> {
        let first = self.region.pages_of(chunk.index).start;
        let part = self.part(chunk, pages);
        let present = chunk.present();
        let start = present.next_set(part.clone());
        let end = start.max(present.gap_before(part.end));
        first + start..first + end
    }

    /// Those of `pages` that are present in `chunk`, counted from its start.
    fn present_set(&self, chunk: &Chunk<'_>, pages: &Range<usize>) -> Snapshot {
        let mut set = Snapshot::EMPTY;
        set.insert(self.part(chunk, pages));
        set.and(&chunk.present())
    }

    /// Those of `pages` that lie in `chunk`, counted from its start.
    fn part(&self, chunk: &Chunk<'_>, pages: &Range<usize>) -> Range<usize> {
        self.region.part_of(chunk.index, pages)
    }

    /// Takes the pages that were discarded out of the bits and the counters.
    fn forget(&self, chunk: &Chunk<'_>, pages: &Range<usize>) {
        let part = self.part(chunk, pages);
        if self.region.track.is_on() {
            note_discarded(self.region, chunk, &self.present_set(chunk, pages));
        }
        let lent = chunk.lent().map_or(0, |lent| lent.clear(part.clone()));
        let resident = chunk.resident.clear(part);
        self.region.ledger.release(resident as u64, lent as u64);
        if self.region.backend == Backend::Mprotect && chunk.count_present() == 0 {
            // Lent no more: all of it is out of reach.
            chunk.state.set_recalled(false);
        }
        if self.region.lends && !chunk.state.is_lent() {
            lend::unmark(self.region, chunk.index);
        }
        forget_if_empty(self.region, chunk);
    }
}

/// Takes note that a chunk has no pages, if that is so, as its owner.
pub(super) fn forget_if_empty(region: &Region, chunk: &Chunk<'_>) {
    if chunk.count_present() == 0 {
        region.tables.summary().clear(chunk.index);
        chunk.state.forget();
    }
}

/// Discards those of `pages`, of the reservation, that lie in `chunk`, as its owner.
pub(super) fn empty_part(
    region: &Region,
    chunk: &Chunk<'_>,
    pages: &Range<usize>,
) -> Result<(), Errno> {
    if region.tables.summary().next(chunk.index) != Some(chunk.index) {
        return Ok(());
    }
    // Its chunk is the caller's to release.
    let batch = ManuallyDrop::new(Batch { region, chunks: chunk.index..chunk.index + 1 });
    batch.empty(pages)
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.iter().for_each(|chunk| chunk.state.release());
    }
}

/// Has the kernel drop what `pages` hold, and tell when they are touched.
fn drop_pages(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    if region.backend == Backend::Mprotect {
        protect::close(region, pages.clone())?;
    }
    protect::drop_pages(region, pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Template;
    use crate::page::page_size;

    /// A chunk whose recall failed half-way is lent still, but not all of it: what is not is not charged,
    /// and emptying it must not say so.
    #[test]
    fn emptying_what_is_lent_charges_nothing() {
        let template = Template::bytes(vec![7; 4 << 20]).unwrap().shared().unwrap();
        let builder = Arena::builder(8 << 20).template(template).backend(Backend::Mprotect);
        let arena = builder.reserve().unwrap();
        for page in [3, 90, 200, 300, 400] {
            // SAFETY: the page is within the arena, which nobody else uses.
            unsafe { arena.as_ptr().add(page * page_size()).write(1) };
        }
        assert_eq!(arena.measure().unwrap().lent_bytes, (2 << 20) - 5 * page_size());
        let region = arena.region();
        let chunk = region.tables.chunk(0).unwrap();
        assert!(chunk.state.is_lent());
        // As the recall does until it fails.
        protect::close(region, 410..420).unwrap();
        let recalled = chunk.lend().clear(410..420);
        region.ledger.release(0, recalled as u64);
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.reset().unwrap() };
        let stats = arena.stats();
        assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, (2 << 20) - 10 * page_size()));
        // SAFETY: as above.
        unsafe {
            assert_eq!(arena.as_ptr().add(415 * page_size()).read(), 7);
            arena.discard(0..arena.len()).unwrap();
        }
        let stats = arena.stats();
        assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, 0));
    }
}
