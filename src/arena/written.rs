//! Which pages were written since the checkpoint.

use super::checkpoint::protect_set;
use super::{Arena, descriptors, inherit};
use crate::Errno;
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, Operation, Result};
use crate::fault::bits::Snapshot;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::sys;
use core::ops::Range;

impl Arena {
    /// The ranges of bytes, whole pages, that were written since the [`checkpoint`](Self::checkpoint) or the
    /// last [`rollback`](Self::rollback) to it, merged and in order: by this process's threads and by system
    /// calls, in huge pages and in pages that are in swap. What was discarded counts as written if it was
    /// there at the checkpoint, and not if it was not, whatever was written to it: it is what it was.
    /// Pages that appeared by reading, or ahead of a touch, do not count.
    ///
    /// With [`Tracking::Kernel`](crate::Tracking::Kernel) it takes a scan of what is present; with
    /// [`Tracking::Signal`](crate::Tracking::Signal) it costs in proportion to what was written, and what
    /// was [populated](Self::populate) counts.
    ///
    /// Pages that rounds of writing and [`rollback`](Self::rollback) have made *hot* are compared with the
    /// checkpoint instead: the first call after such rounds reports those that differ, so not one that was
    /// written with what it held. From then on none is hot, until the next checkpoint, and it is exact.
    ///
    /// A page that another thread writes meanwhile is reported by this call or the next.
    ///
    /// # Errors
    /// - [`ErrorKind::NoCheckpoint`](crate::ErrorKind::NoCheckpoint): there is none.
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os): `/proc/self/pagemap` cannot be read.
    /// - [`ErrorKind::ForkedWithoutHooks`](crate::ErrorKind::ForkedWithoutHooks),
    ///   [`ErrorKind::NotRearmed`](crate::ErrorKind::NotRearmed): see [`Arena`].
    ///
    /// ```
    /// use lacuna::{Arena, Backend};
    ///
    /// let arena = Arena::builder(1 << 30).backend(Backend::Userfaultfd).reserve()?;
    /// let page = lacuna::page_size();
    /// arena.populate(0..64 * page)?;
    /// arena.checkpoint()?;
    /// // SAFETY: the offsets are within the arena, and nobody else uses it.
    /// unsafe {
    ///     arena.as_ptr().add(9 * page + 5).write(1);
    ///     arena.as_ptr().add(10 * page).write(1);
    ///     assert_eq!(arena.as_ptr().add(20 * page).read(), 0);
    /// }
    /// assert_eq!(arena.written()?, [9 * page..11 * page]);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn written(&self) -> Result<Vec<Range<usize>>> {
        inherit::check(Operation::Written)?;
        let _busy = self.locked(Operation::Written)?;
        let blocked = SignalsBlocked::as_in_handler();
        self.harvest(Operation::Written)?;
        self.cool(&blocked).map_err(|errno| Error::os(Operation::Written, errno))?;
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let mut from = 0;
        while let Some(index) = self.next_touched(from) {
            for range in self.written_in(index) {
                match ranges.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => ranges.push(range),
                }
            }
            from = index + 1;
        }
        Ok(ranges)
    }

    /// Marks as written what the kernel says was, if it takes note of it. The caller has locked the
    /// checkpoint.
    ///
    /// Pages stay unprotected, so they are found again until they are protected: what is to begin anew, as
    /// a checkpoint does, protects them and clears their marks.
    pub(super) fn harvest(&self, operation: Operation) -> Result<()> {
        let region = self.region();
        if !region.track.is_by_kernel() {
            return Ok(());
        }
        let error = |errno| Error::os(operation, errno);
        let pagemap = descriptors::pagemap().map_err(error)?;
        let summary = region.tables.summary();
        let mut watched = Vec::new();
        let mut from = 0;
        while let Some(first) = summary.next(from) {
            // Before it is asked: to the kernel an absent page is written too, and one that comes
            // meanwhile is not.
            watched.clear();
            watched.push(watched_in(region, first));
            from = first + 1;
            while watched.len() < SCAN && summary.next(from) == Some(from) {
                watched.push(watched_in(region, from));
                from += 1;
            }
            let pages = region.pages_of(first).start..region.pages_of(from - 1).end;
            let mut visit = |run: Range<usize>| mark(region, first, &watched, run);
            pagemap.visit_written(region, pages, is_quick(), &mut visit).map_err(error)?;
        }
        Ok(())
    }

    /// The ranges of bytes in chunk `index` that are written.
    fn written_in(&self, index: usize) -> impl Iterator<Item = Range<usize>> {
        let region = self.region();
        let written = match (region.marks(index), region.tables.chunk(index)) {
            (Some(marks), Some(chunk)) => {
                marks.written.load().and(&marks.held.load().union(&chunk.present()))
            }
            _ => Snapshot::EMPTY,
        };
        let (first, shift) = (region.pages_of(index).start, region.page_shift);
        written.runs().map(move |run| (first + run.start) << shift..(first + run.end) << shift)
    }

    /// Has no page be hot any more: marks those as written that differ from the checkpoint.
    fn cool(&self, blocked: &SignalsBlocked) -> Result<(), Errno> {
        if !self.region().track.may_heat() {
            return Ok(());
        }
        let mut page = vec![0; 1 << self.region().page_shift];
        let mut from = 0;
        while let Some(index) = self.next_touched(from) {
            self.as_owner(blocked, index, |region, chunk| cool_chunk(region, chunk, &mut page))
                .unwrap_or(Ok(()))?;
            from = index + 1;
        }
        self.region().track.set_cool(true);
        Ok(())
    }
}

/// Chunks that are scanned by one call at most.
const SCAN: usize = 256;

/// The pages of chunk `index` that are present and not hot.
fn watched_in(region: &Region, index: usize) -> Snapshot {
    match (region.tables.chunk(index), region.marks(index)) {
        (Some(chunk), Some(marks)) => chunk.present().minus(&marks.hot.load()),
        _ => Snapshot::EMPTY,
    }
}

/// Marks those of `pages` of the reservation as written that are `watched`, chunk by chunk from `first` on.
fn mark(region: &Region, first: usize, watched: &[Snapshot], pages: Range<usize>) {
    let mut page = pages.start;
    while page < pages.end {
        let Some((chunk, start)) = region.chunk_of(page) else { return };
        let whole = region.pages_of(chunk.index);
        let end = pages.end.min(whole.end);
        let mut run = Snapshot::EMPTY;
        run.insert(start..end - whole.start);
        let written = watched.get(chunk.index - first).map_or(Snapshot::EMPTY, |it| run.and(it));
        if !written.is_empty() {
            region.touch(chunk.index, Some(&written));
        }
        page = end;
    }
}

/// As [`Arena::cool`], as a chunk's owner.
fn cool_chunk(region: &Region, chunk: &Chunk<'_>, page: &mut [u8]) -> Result<(), Errno> {
    let Some(marks) = region.marks(chunk.index) else { return Ok(()) };
    let hot = marks.hot.load().and(&chunk.present());
    // Before they are looked at: what is written later is seen.
    protect_set(region, chunk, &hot, false)?;
    let first = region.pages_of(chunk.index).start;
    for index in hot.runs().flatten() {
        // SAFETY: the buffer is a page long.
        let copied = unsafe {
            sys::copy_out(page.as_mut_ptr(), region.address_of(first + index), page.len())
        };
        // SAFETY: the shadow has the page, and is written by holders of the checkpoint's lock and owners of
        // the chunk alone, which this thread is.
        let saved = unsafe {
            core::slice::from_raw_parts(region.shadow_of(first + index).cast_const(), page.len())
        };
        if copied != Ok(page.len()) || page != saved {
            marks.written.set(index..index + 1);
        }
    }
    marks.hot.assign(&Snapshot::EMPTY);
    Ok(())
}

/// Whether the kernel's quick scan can be believed about pages in swap: since Linux 6.15, and in some stable
/// releases before.
fn is_quick() -> bool {
    const UNKNOWN: u32 = 0;
    const NO: u32 = 1;
    const YES: u32 = 2;
    static QUICK: AtomicU32 = AtomicU32::new(UNKNOWN);
    // Relaxed: whoever asks finds the same.
    if QUICK.load(Ordering::Relaxed) == UNKNOWN {
        let quick = sys::kernel_release().is_some_and(|release| release >= (6, 15));
        QUICK.store(if quick { YES } else { NO }, Ordering::Relaxed);
    }
    QUICK.load(Ordering::Relaxed) == YES
}
