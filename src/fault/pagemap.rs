//! The kernel's view of pages, from `/proc/self/pagemap`, read without allocating.

use super::region::Region;
use crate::page::page_shift;
use crate::sys::{self, seam::Call};
use core::ffi::{c_int, c_ulong};
use core::mem;
use core::ops::Range;
use linux_raw_sys::general::{
    PAGE_IS_PFNZERO, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg,
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
/// Mapped by this process alone.
const EXCLUSIVE: u64 = 1 << 56;

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    Absent,
    /// The kernel's zero page.
    Zero,
    /// Memory, or memory in swap.
    Memory,
}

/// Takes runs of pages, counted from the start of their chunk.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(Range<usize>, Page);

/// Runs that one PAGEMAP_SCAN may tell.
const BATCH: usize = 32;

impl Pagemap {
    pub(crate) fn open() -> Result<Self, Errno> {
        let descriptor = sys::open(Call::OpenPagemap, c"/proc/self/pagemap", libc::O_RDONLY)?;
        Ok(Self { descriptor, scans: true })
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
            request.return_mask = request.category_anyof_mask | u64::from(PAGE_IS_PFNZERO);
            // SAFETY: the kernel writes at most `vec_len` runs to `vec`, and reads no page.
            let count = unsafe { pagemap_scan(self.descriptor.as_raw_fd(), &raw mut request) }?;
            for run in runs.iter().take(count as usize) {
                let zero = run.categories & u64::from(PAGE_IS_PFNZERO) != 0;
                visit(page(start)..page(run.start), Page::Absent);
                visit(page(run.start)..page(run.end), if zero { Page::Zero } else { Page::Memory });
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
                    Page::Zero
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
