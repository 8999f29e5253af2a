//! The kernel's view of pages, from `/proc/self/pagemap`, read without allocating.

use super::bits::Snapshot;
use super::region::Region;
use crate::page::CHUNK;
use core::mem;
use core::ops::Range;
use libc::c_int;
use linux_raw_sys::general::{
    PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg,
};
use nix::errno::Errno;

nix::ioctl_readwrite! {
    /// `PAGEMAP_SCAN`, since Linux 6.7.
    pagemap_scan, b'f', 16, pm_scan_arg
}

/// An open `/proc/self/pagemap`. It shows the process that opened it, also to a forked child.
#[derive(Debug)]
pub(crate) struct Pagemap {
    descriptor: c_int,
    /// Whether the kernel has PAGEMAP_SCAN.
    pub(crate) scans: bool,
}

/// What the pages of a chunk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// Memory, or memory in swap.
    pub(crate) memory: Snapshot,
    /// The kernel's zero page.
    pub(crate) zero: Snapshot,
}

/// Runs that one PAGEMAP_SCAN, or entries that one read, may tell: they lie on a small stack.
const BATCH: usize = 8;

impl Pagemap {
    pub(crate) fn open() -> Result<Self, Errno> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string.
        let descriptor = unsafe { libc::open(c"/proc/self/pagemap".as_ptr(), flags) };
        Ok(Self { descriptor: Errno::result(descriptor)?, scans: true })
    }

    /// What the pages of chunk `index` are.
    pub(crate) fn view(&self, region: &Region, index: usize) -> Result<View, Errno> {
        let mut view = View { memory: Snapshot::EMPTY, zero: Snapshot::EMPTY };
        let pages = region.pages_of(index);
        if self.scans {
            match self.scan(region, pages.clone(), &mut view) {
                // A kernel before 6.7.
                Err(Errno::ENOTTY) => {}
                result => return result.map(|()| view),
            }
        }
        self.read(region, pages, &mut view).map(|()| view)
    }

    /// By PAGEMAP_SCAN, which tells the zero page apart.
    fn scan(&self, region: &Region, pages: Range<usize>, view: &mut View) -> Result<(), Errno> {
        let first = region.address_of(pages.start) as u64;
        let end = region.address_of(pages.end) as u64;
        let page = |address: u64| (address.wrapping_sub(first) >> region.page_shift) as usize;
        let mut start = first;
        while start < end {
            let mut runs = [page_region { start: 0, end: 0, categories: 0 }; BATCH];
            // SAFETY: zeroes are a valid request for nothing.
            let mut request: pm_scan_arg = unsafe { mem::zeroed() };
            request.size = size_of::<pm_scan_arg>() as u64;
            (request.start, request.end) = (start, end);
            request.vec = runs.as_mut_ptr().expose_provenance() as u64;
            request.vec_len = runs.len() as u64;
            request.category_anyof_mask = u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
            request.return_mask = request.category_anyof_mask | u64::from(PAGE_IS_PFNZERO);
            // SAFETY: the kernel writes at most `vec_len` runs to `vec`, and reads no page.
            let count = unsafe { pagemap_scan(self.descriptor, &raw mut request) }?;
            for run in runs.iter().take(count as usize) {
                let zero = run.categories & u64::from(PAGE_IS_PFNZERO) != 0;
                let set = if zero { &mut view.zero } else { &mut view.memory };
                set.insert(page(run.start)..page(run.end));
            }
            start = request.walk_end.max(start.saturating_add(1));
        }
        Ok(())
    }

    /// By reading the entries: a page that is present but neither in swap nor mapped by this
    /// process alone is taken for the zero page.
    fn read(&self, region: &Region, pages: Range<usize>, view: &mut View) -> Result<(), Errno> {
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        const EXCLUSIVE: u64 = 1 << 56;
        let first = region.address_of(pages.start) >> region.page_shift;
        for batch in (0..pages.len()).step_by(BATCH) {
            let mut entries = [0u64; BATCH];
            let count = pages.len().saturating_sub(batch).min(BATCH);
            let bytes = size_of::<u64>().wrapping_mul(count);
            let offset = first.wrapping_add(batch).wrapping_mul(size_of::<u64>());
            // SAFETY: the entries have room for so many bytes.
            let read = unsafe {
                let buffer = entries.as_mut_ptr().cast();
                libc::pread(self.descriptor, buffer, bytes, offset as libc::off_t)
            };
            if Errno::result(read)? as usize != bytes {
                return Err(Errno::EIO);
            }
            for (index, entry) in entries.iter().take(count).enumerate() {
                let page = batch.wrapping_add(index);
                let set = match entry {
                    entry if entry & (PRESENT | SWAPPED) == 0 => continue,
                    entry if entry & (SWAPPED | EXCLUSIVE) == 0 => &mut view.zero,
                    _ => &mut view.memory,
                };
                set.insert(page..page.wrapping_add(1));
            }
        }
        Ok(())
    }
}

impl Drop for Pagemap {
    fn drop(&mut self) {
        // SAFETY: opened by this value, which goes.
        unsafe { libc::close(self.descriptor) };
    }
}

const _: () = assert!(CHUNK >> 12 <= super::bits::BITS, "a view holds a chunk of 4 KiB pages");
