//! The same table on plain mmap(2), to compare: zeroes, no budget, and what was touched is the
//! kernel's to tell.
#![allow(unsafe_code, reason = "a mapping and an ioctl: what lacuna does for everything else here")]

use linux_raw_sys::general::{PAGE_IS_PRESENT, PAGE_IS_SWAPPED, page_region, pm_scan_arg};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::slice;

nix::ioctl_readwrite! {
    /// `PAGEMAP_SCAN`, since Linux 6.7.
    pagemap_scan, b'f', 16, pm_scan_arg
}

/// Runs of pages that one call may tell.
const BATCH: usize = 4096;

/// Counters in anonymous memory that the kernel fills page by page.
pub(crate) struct Plain {
    base: NonNull<u32>,
    len: usize,
}

impl Plain {
    /// `len` counters at zero.
    pub(crate) fn new(len: NonZeroUsize) -> io::Result<Self> {
        let bytes = len.checked_mul(const { NonZeroUsize::new(size_of::<u32>()).unwrap() });
        let bytes = bytes.ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        Ok(Self { base: base.cast(), len: len.get() })
    }

    /// The runs of counters on pages that were touched, in order.
    pub(crate) fn populated(&self) -> io::Result<Vec<Range<usize>>> {
        let pagemap = File::open("/proc/self/pagemap")?;
        let start = self.base.as_ptr().expose_provenance() as u64;
        let end = start + size_of_val::<[u32]>(self) as u64;
        let index = |address: u64| (address - start) as usize / size_of::<u32>();
        let mut found = Vec::new();
        let mut runs = vec![page_region { start: 0, end: 0, categories: 0 }; BATCH];
        let mut from = start;
        while from < end {
            // SAFETY: zeroes are a valid request for nothing.
            let mut request: pm_scan_arg = unsafe { std::mem::zeroed() };
            request.size = size_of::<pm_scan_arg>() as u64;
            (request.start, request.end) = (from, end);
            request.vec = runs.as_mut_ptr().expose_provenance() as u64;
            request.vec_len = runs.len() as u64;
            request.category_anyof_mask = u64::from(PAGE_IS_PRESENT | PAGE_IS_SWAPPED);
            request.return_mask = request.category_anyof_mask;
            // SAFETY: the kernel writes at most `vec_len` runs to `vec`.
            let count = unsafe { pagemap_scan(pagemap.as_raw_fd(), &raw mut request) }?;
            let runs = &runs[..count as usize];
            found.extend(runs.iter().map(|run| index(run.start)..index(run.end)));
            // Not `walk_end`, which may lie before the end of the last run.
            from = match runs.last() {
                Some(run) if runs.len() == BATCH => run.end,
                _ => end,
            };
        }
        Ok(found)
    }
}

impl Deref for Plain {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        // SAFETY: the mapping is so long, zeroed, and this value's alone.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl DerefMut for Plain {
    fn deref_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // SAFETY: mapped by this value, which goes.
        let unmapped = unsafe { munmap(self.base.cast(), self.len * size_of::<u32>()) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
