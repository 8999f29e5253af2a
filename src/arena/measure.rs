//! Asking the kernel what is memory.

use super::{Arena, Stats, inherit};
use crate::Errno;
use crate::error::{Error, Operation, Result};
use crate::fault::lend::reconcile;
use crate::fault::pagemap::{Page, Pagemap};
use crate::fault::signals::SignalsBlocked;
use core::ops::Range;

impl Arena {
    /// Asks the kernel which pages are memory by now, and moves those that were lent from
    /// `lent_bytes` to `resident_bytes`. Afterwards `resident_bytes` equals what the kernel reports
    /// for the reservation (`Rss` and `Swap` in `/proc/self/smaps`), to the page, as long as nobody
    /// touches it. It costs in proportion to what is present. (Huge pages of hugetlbfs are told as
    /// `Private_Hugetlb` and `Shared_Hugetlb` there.)
    ///
    /// Of memory that is shared with other processes ([`ArenaBuilder::share`](super::ArenaBuilder::share))
    /// it counts what *this* process has mapped: pages of others that it has touched are taken on (before
    /// Linux 6.7 only near its own), those that others have discarded are let go, and so are those that are
    /// in swap.
    ///
    /// With a [shared](crate::Template::shared) image it equals `Anonymous` and `Swap`: `Rss` counts the
    /// frames that arenas have in common as well, which stay lent.
    ///
    /// Before Linux 6.7 the kernel does not tell the zero page from a page that is still shared with
    /// a forked child; such pages stay lent until the child is gone.
    ///
    /// # Errors
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os): `/proc/self/pagemap` cannot be read.
    /// - [`ErrorKind::ForkedWithoutHooks`](crate::ErrorKind::ForkedWithoutHooks),
    ///   [`ErrorKind::NotRearmed`](crate::ErrorKind::NotRearmed): see [`Arena`].
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
    /// // SAFETY: the first byte is within the arena, and nobody else uses the arena.
    /// unsafe {
    ///     assert_eq!(arena.as_ptr().read_volatile(), 0); // shows the kernel's zero page
    ///     arena.as_ptr().write(1); // which the kernel replaces, without a fault of ours
    /// }
    /// assert_eq!(arena.stats().lent_bytes, lacuna::page_size());
    /// let stats = arena.measure()?;
    /// assert_eq!((stats.resident_bytes, stats.lent_bytes), (lacuna::page_size(), 0));
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn measure(&self) -> Result<Stats> {
        inherit::check(Operation::Measure)?;
        let error = |errno: Errno| Error::os(Operation::Measure, errno);
        self.measure_with(&Pagemap::open().map_err(error)?).map_err(error)
    }

    fn measure_with(&self, pagemap: &Pagemap) -> Result<Stats, Errno> {
        let blocked = SignalsBlocked::new();
        if self.region().backing.is_shared() {
            self.mark_mapped(pagemap)?;
        }
        let mut from = 0;
        while let Some(index) = self.region().tables.summary().next(from) {
            self.as_owner(&blocked, index, |region, chunk| reconcile(region, chunk, pagemap))
                .unwrap_or(Ok(()))?;
            from = index + 1;
        }
        Ok(self.stats())
    }
}

impl Arena {
    /// Marks the chunks that have pages, whoever installed them.
    fn mark_mapped(&self, pagemap: &Pagemap) -> Result<(), Errno> {
        let region = self.pin();
        let mark = &mut |pages: Range<usize>, page| {
            if page != Page::Absent && !pages.is_empty() {
                let chunk_pages = region.chunk_pages();
                for index in pages.start / chunk_pages..pages.end.div_ceil(chunk_pages) {
                    region.tables.summary().set(index);
                }
            }
        };
        match pagemap.visit_all(&region, mark) {
            Err(Errno::ENOTTY) => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::page_size;

    /// The two ways to see pages agree, so the one for old kernels is tested on new ones too.
    #[test]
    fn both_ways_see_the_same() {
        let arena = Arena::builder(3 << 20).window(crate::Window::Pages(1)).reserve().unwrap();
        let touch = |page: usize, write: bool| {
            // SAFETY: the page is within the arena, which nobody else uses.
            unsafe {
                let byte = arena.as_ptr().add(page * page_size());
                if write { byte.write_volatile(1) } else { _ = byte.read_volatile() }
            }
        };
        touch(0, true);
        touch(1, false);
        touch(2, false);
        touch(2, true);
        touch(600, true);
        let mut pagemap = Pagemap::open().unwrap();
        let pages = |pagemap: &Pagemap, chunk| {
            let mut pages = Vec::new();
            let mut visit = |run: std::ops::Range<usize>, page| {
                assert_eq!(run.start, pages.len());
                pages.resize(run.end, page);
            };
            pagemap.visit(arena.region(), chunk, &mut visit).unwrap();
            pages
        };
        let scanned = [0, 1].map(|chunk| pages(&pagemap, chunk));
        pagemap.scans = false;
        assert_eq!(scanned, [0, 1].map(|chunk| pages(&pagemap, chunk)));
        assert_eq!(scanned[0][..4], [Page::Memory, Page::Common, Page::Memory, Page::Absent]);
        assert_eq!(scanned[1].len(), 256);
        assert_eq!(arena.stats().lent_bytes, 2 * page_size());
        let stats = arena.measure_with(&pagemap).unwrap();
        assert_eq!(stats.resident_bytes, 3 * page_size());
        assert_eq!(stats.lent_bytes, page_size());
    }
}
