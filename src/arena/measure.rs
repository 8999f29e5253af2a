//! Asking the kernel what is memory.

use super::Arena;
use super::change::SignalsBlocked;
use crate::Errno;
use crate::error::{Error, Operation, Result};
use crate::fault::region::Region;
use crate::fault::tables::Chunk;
use core::ops::Range;
use linux_raw_sys::general::{
    PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg,
};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

nix::ioctl_readwrite! {
    /// `PAGEMAP_SCAN`, since Linux 6.7.
    pagemap_scan, b'f', 16, pm_scan_arg
}

/// The kernel's view of this process's pages, with the memory that reading it takes: nothing is
/// allocated while a chunk is owned.
struct Pagemap {
    file: File,
    /// Whether the kernel has PAGEMAP_SCAN.
    scans: bool,
    runs: Vec<page_region>,
    entries: Vec<u8>,
}

/// Bytes of an entry of `/proc/self/pagemap`.
const ENTRY: usize = size_of::<u64>();

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Absent,
    /// The kernel's zero page.
    Zero,
    Memory,
}

impl Arena {
    /// Asks the kernel which pages are memory by now, and moves those that were lent from
    /// `lent_bytes` to `resident_bytes`. Afterwards `resident_bytes` equals what the kernel reports
    /// for the reservation (`Rss` and `Swap` in `/proc/self/smaps`), to the page, as long as nobody
    /// touches it. It costs in proportion to what is present.
    ///
    /// Before Linux 6.7 the kernel does not tell the zero page from a page that is still shared with
    /// a forked child; such pages stay lent until the child is gone.
    ///
    /// # Errors
    /// [`ErrorKind::Os`](crate::ErrorKind::Os): `/proc/self/pagemap` cannot be read.
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
    pub fn measure(&self) -> Result<super::Stats> {
        self.measure_with(&mut Pagemap::open(self.region().chunk_pages())?)
    }

    fn measure_with(&self, pagemap: &mut Pagemap) -> Result<super::Stats> {
        let mut pages = vec![Page::Absent; self.region().chunk_pages()];
        let blocked = SignalsBlocked::new();
        let mut from = 0;
        while let Some(index) = self.region().tables.summary().next(from) {
            let measure = |region: &Region, chunk: &Chunk<'_>| {
                let range = region.pages_of(index);
                let pages = &mut pages[..range.len()];
                pagemap.read(region, range, pages)?;
                correct(region, chunk, pages);
                Ok(())
            };
            self.as_owner(&blocked, index, measure)
                .unwrap_or(Ok(()))
                .map_err(|errno| Error::os(Operation::Measure, errno))?;
            from = index + 1;
        }
        Ok(self.stats())
    }
}

/// Brings the bits and counters of a chunk in line with what its pages are, as its owner.
fn correct(region: &Region, chunk: &Chunk<'_>, pages: &[Page]) {
    let resident = chunk.resident.load();
    let lent = chunk.lent().map(|lent| lent.load());
    for (index, page) in pages.iter().enumerate() {
        let bit = index..index + 1;
        let was_lent = lent.is_some_and(|lent| lent.get(index));
        match (resident.get(index), was_lent, page) {
            (false, true, Page::Memory) => {
                chunk.lend().clear(bit.clone());
                chunk.resident.set(bit);
                region.ledger.convert(1);
            }
            // Dropped behind our back, as madvise(2) on the range would.
            (true, _, Page::Absent) => {
                chunk.resident.clear(bit);
                region.ledger.release(1, 0);
            }
            (false, true, Page::Absent) => {
                chunk.lend().clear(bit);
                region.ledger.release(0, 1);
            }
            _ => {}
        }
    }
}

impl Pagemap {
    fn open(chunk_pages: usize) -> Result<Self> {
        let error = |cause: std::io::Error| {
            let errno = Errno::from_raw(cause.raw_os_error().unwrap_or(0));
            Error::os(Operation::Measure, errno)
        };
        Ok(Self {
            file: File::open("/proc/self/pagemap").map_err(error)?,
            scans: true,
            runs: vec![page_region { start: 0, end: 0, categories: 0 }; chunk_pages],
            entries: vec![0; chunk_pages * ENTRY],
        })
    }

    /// What the pages of `range` are.
    fn read(
        &mut self,
        region: &Region,
        range: Range<usize>,
        pages: &mut [Page],
    ) -> Result<(), Errno> {
        if self.scans {
            match self.scan(region, range.clone(), pages) {
                // A kernel before 6.7.
                Err(Errno::ENOTTY) => {}
                result => return result,
            }
        }
        self.read_entries(region, range, pages)
    }

    /// By PAGEMAP_SCAN, which tells the zero page apart.
    fn scan(
        &mut self,
        region: &Region,
        range: Range<usize>,
        pages: &mut [Page],
    ) -> Result<(), Errno> {
        pages.fill(Page::Absent);
        let (start, end) = (region.address_of(range.start), region.address_of(range.end));
        // SAFETY: zeroes are a valid request for nothing.
        let mut request: pm_scan_arg = unsafe { core::mem::zeroed() };
        request.size = size_of::<pm_scan_arg>() as u64;
        (request.start, request.end) = (start as u64, end as u64);
        (request.vec, request.vec_len) =
            (self.runs.as_mut_ptr().expose_provenance() as u64, self.runs.len() as u64);
        request.category_anyof_mask = u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
        request.return_mask = u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO);
        // SAFETY: the kernel writes at most `vec_len` regions to `vec`, and only reads the pages'
        // state.
        let count = unsafe { pagemap_scan(self.file.as_raw_fd(), &raw mut request) }?;
        for run in self.runs.iter().take(count as usize) {
            let zero = run.categories & u64::from(PAGE_IS_PFNZERO) != 0;
            let index = |address: u64| (address as usize - start) >> region.page_shift;
            pages[index(run.start)..index(run.end)].fill(if zero {
                Page::Zero
            } else {
                Page::Memory
            });
        }
        Ok(())
    }

    /// By reading the entries: a page that is present but neither in swap nor mapped by this
    /// process alone is taken for the zero page.
    fn read_entries(
        &mut self,
        region: &Region,
        range: Range<usize>,
        pages: &mut [Page],
    ) -> Result<(), Errno> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const EXCLUSIVE: u64 = 1 << 56;
        let entries = &mut self.entries[..pages.len() * ENTRY];
        let first = region.address_of(range.start) >> region.page_shift;
        self.file
            .read_exact_at(entries, (first * ENTRY) as u64)
            .map_err(|cause| Errno::from_raw(cause.raw_os_error().unwrap_or(0)))?;
        for (page, entry) in pages.iter_mut().zip(entries.as_chunks::<ENTRY>().0) {
            *page = match u64::from_ne_bytes(*entry) {
                entry if entry & (PRESENT | SWAPPED) == 0 => Page::Absent,
                entry if entry & (SWAPPED | EXCLUSIVE) == 0 => Page::Zero,
                _ => Page::Memory,
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::page_size;

    /// The two ways agree, so the one for old kernels is tested on new ones too.
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
        touch(3, false);
        touch(4, false);
        touch(4, true);
        touch(600, true);
        let mut pagemap = Pagemap::open(512).unwrap();
        for range in [0..512, 512..768] {
            let (mut scanned, mut read) = ([Page::Absent; 512], [Page::Absent; 512]);
            let region = arena.region();
            pagemap.scan(region, range.clone(), &mut scanned[..range.len()]).unwrap();
            pagemap.read_entries(region, range.clone(), &mut read[..range.len()]).unwrap();
            assert_eq!(scanned, read);
        }
        assert_eq!(arena.stats().lent_bytes, 2 * page_size());
        pagemap.scans = false;
        let stats = arena.measure_with(&mut pagemap).unwrap();
        assert_eq!(stats.resident_bytes, 3 * page_size());
        assert_eq!(stats.lent_bytes, page_size());
    }
}
