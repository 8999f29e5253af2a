//! The kernel's view of pages, from `/proc/self/pagemap`, read without allocating.

use super::region::Region;
use crate::page::page_shift;
use crate::sys::{self, seam::Call};
use core::ffi::{c_int, c_ulong};
use core::mem;
use core::ops::Range;
use linux_raw_sys::general::{
    PAGE_IS_FILE, PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN,
    PM_SCAN_WP_MATCHING, page_region, pm_scan_arg,
};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// `PAGEMAP_SCAN`, since Linux 6.7.
///
/// # Safety
/// `argument` is a valid request.
unsafe fn pagemap_scan(fd: c_int, argument: *mut pm_scan_arg) -> Result<c_int, Errno> {
    const REQUEST: c_ulong = nix::request_code_readwrite!(b'f', 16, size_of::<pm_scan_arg>());
    // SAFETY: as the caller promises.
    unsafe { sys::ioctl(Call::ScanPagemap, fd, REQUEST, argument) }
}

/// An open `/proc/self/pagemap`. It shows the process that opened it, also to a forked child.
#[derive(Debug)]
pub(crate) struct Pagemap {
    descriptor: OwnedFd,
    /// Whether the kernel has PAGEMAP_SCAN.
    pub(crate) scans: bool,
}

// Bits of an entry.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// A page of a file.
const FILE: u64 = 1 << 61;
/// Mapped by this process alone.
const EXCLUSIVE: u64 = 1 << 56;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Absent,
    /// The kernel's zero page, or a page of a shared image: no memory of the arena's own.
    Common,
    /// Memory, or memory in swap.
    Memory,
}

/// Takes runs of pages, counted from the start of their chunk.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Range<usize>, Page);

/// Runs that one PAGEMAP_SCAN may tell.
const BATCH: usize = 32;

/// Runs of written pages that one may tell; never asked for in the handler.
const WRITTEN_BATCH: usize = 512;

impl Pagemap {
    pub(crate) fn open() -> Result<Self, Errno> {
        let descriptor = sys::open(Call::OpenPagemap, c"/proc/self/pagemap", libc::O_RDONLY)?;
        Ok(Self { descriptor, scans: true })
    }

    /// One that was opened before.
    pub(crate) fn of(descriptor: OwnedFd) -> Self {
        Self { descriptor, scans: true }
    }

    /// The descriptor; it stays open.
    pub(crate) fn into_descriptor(self) -> OwnedFd {
        self.descriptor
    }

    /// Visits runs of pages of the reservation, in order, that cover those among `pages` which are
    /// present and not write-protected; what is absent may be visited too. The region is registered
    /// for that with [`Tracking::Kernel`](super::track::Tracking::Kernel).
    ///
    /// `quick` asks for nothing else, for which the kernel has a way that is many times faster.
    pub(crate) fn visit_written(
        &self,
        region: &Region,
        pages: Range<usize>,
        quick: bool,
        visit: &mut dyn FnMut(Range<usize>),
    ) -> Result<(), Errno> {
        let base = region.base as u64;
        let page = |address: u64| (address.wrapping_sub(base) >> region.page_shift) as usize;
        let end = region.address_of(pages.end) as u64;
        let mut start = region.address_of(pages.start) as u64;
        while start < end {
            let mut runs = [page_region { start: 0, end: 0, categories: 0 }; WRITTEN_BATCH];
            // SAFETY: zeroes are a valid request for nothing.
            let mut request: pm_scan_arg = unsafe { mem::zeroed() };
            request.size = size_of::<pm_scan_arg>() as u64;
            (request.start, request.end) = (start, end);
            request.vec = runs.as_mut_ptr().expose_provenance() as u64;
            request.vec_len = runs.len() as u64;
            request.category_mask = u64::from(PAGE_IS_WRITTEN);
            let more = if quick { 0 } else { u64::from(PAGE_IS_PRESENT) };
            request.return_mask = request.category_mask | more;
            // SAFETY: the kernel writes at most `vec_len` runs to `vec`, and reads no page.
            let count = unsafe { pagemap_scan(self.descriptor.as_raw_fd(), &raw mut request) }?;
            for run in runs.iter().take(count as usize) {
                visit(page(run.start)..page(run.end));
            }
            start = if request.walk_end > start { request.walk_end } else { end };
        }
        Ok(())
    }

    /// Write-protects `pages` of the reservation, all of them present, those that are protected included.
    pub(crate) fn protect(&self, region: &Region, pages: Range<usize>) -> Result<(), Errno> {
        // SAFETY: zeroes are a valid request for nothing.
        let mut request: pm_scan_arg = unsafe { mem::zeroed() };
        request.size = size_of::<pm_scan_arg>() as u64;
        request.start = region.address_of(pages.start) as u64;
        request.end = region.address_of(pages.end) as u64;
        request.flags = u64::from(PM_SCAN_WP_MATCHING);
        request.category_mask = u64::from(PAGE_IS_WRITTEN);
        request.return_mask = request.category_mask;
        // SAFETY: nothing is told; the pages are a reservation's of ours, which is tracked.
        unsafe { pagemap_scan(self.descriptor.as_raw_fd(), &raw mut request) }.map(drop)
    }

    /// Visits the pages of chunk `index`, run by run in order.
    pub(crate) fn visit(&self, region: &Region, index: usize, visit: Visit) -> Result<(), Errno> {
        let pages = region.pages_of(index);
        if self.scans {
            match self.scan(region, pages.clone(), visit) {
                // A kernel before 6.7.
                Err(Errno::ENOTTY) => {}
                result => return result,
            }
        }
        self.read(region, pages, visit)
    }

    /// By PAGEMAP_SCAN, which tells the zero page apart.
    fn scan(&self, region: &Region, pages: Range<usize>, visit: Visit) -> Result<(), Errno> {
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
            let common = match region.backing.is_ordinary() {
                true => u64::from(PAGE_IS_PFNZERO | PAGE_IS_FILE),
                // A page of the file is memory that the arena has.
                false => 0,
            };
            request.return_mask = request.category_anyof_mask | common;
            // SAFETY: the kernel writes at most `vec_len` runs to `vec`, and reads no page.
            let count = unsafe { pagemap_scan(self.descriptor.as_raw_fd(), &raw mut request) }?;
            for run in runs.iter().take(count as usize) {
                let page_is =
                    if run.categories & common != 0 { Page::Common } else { Page::Memory };
                visit(page(start)..page(run.start), Page::Absent);
                visit(page(run.start)..page(run.end), page_is);
                start = run.end;
            }
            // It stops early when the batch is full, and after the last run otherwise.
            if (count as usize) < BATCH {
                break;
            }
        }
        visit(page(start)..pages.len(), Page::Absent);
        Ok(())
    }

    /// Visits the pages of the whole reservation, as the chunks' pages are visited; ENOTTY on a
    /// kernel that cannot tell without being asked for each page.
    pub(crate) fn visit_all(&self, region: &Region, visit: Visit) -> Result<(), Errno> {
        match self.scans {
            true => self.scan(region, 0..region.pages, visit),
            false => Err(Errno::ENOTTY),
        }
    }

    /// By reading the entries: a page that is present but neither in swap nor mapped by this
    /// process alone is taken for the zero page, where there is one.
    fn read(&self, region: &Region, pages: Range<usize>, visit: Visit) -> Result<(), Errno> {
        for page in 0..pages.len() {
            let state = match self.entry(region, pages.start.wrapping_add(page))? {
                entry if entry & (PRESENT | SWAPPED) == 0 => Page::Absent,
                entry if entry & (SWAPPED | EXCLUSIVE) == 0 && region.backing.is_ordinary() => {
                    Page::Common
                }
                entry if entry & (SWAPPED | FILE) == FILE && region.backing.is_ordinary() => {
                    Page::Common
                }
                _ => Page::Memory,
            };
            visit(page..page.wrapping_add(1), state);
        }
        Ok(())
    }

    /// Whether page `page` of the reservation is neither in memory nor in swap. One system call a
    /// page, for little stack.
    #[inline(always)]
    pub(crate) fn is_missing(&self, region: &Region, page: usize) -> Result<bool, Errno> {
        Ok(self.entry(region, page)? & (PRESENT | SWAPPED) == 0)
    }

    /// The entry of page `page` of the reservation.
    #[inline(always)]
    fn entry(&self, region: &Region, page: usize) -> Result<u64, Errno> {
        let mut entry = 0u64;
        // An entry for each base page, also where pages are larger.
        let index = region.address_of(page) >> page_shift();
        let (len, offset) = (size_of::<u64>(), index.wrapping_mul(size_of::<u64>()));
        let (fd, to) = (self.descriptor.as_raw_fd(), (&raw mut entry).cast());
        // SAFETY: the entry is as long as said.
        match unsafe { sys::read_at(Call::ReadPagemap, fd, to, len, offset) }? {
            read if read == len => Ok(entry),
            _ => Err(Errno::EIO),
        }
    }
}
