//! The backend without userfaultfd: what is missing is inaccessible.
//!
//! A page is filled first, through `/proc/self/mem`, which ignores the protection of private memory,
//! and made accessible then: so it appears to other threads whole, as with UFFDIO_COPY. What that has
//! and this lacks is the answer EEXIST; so pages are installed by the owner of their chunk, whose bits
//! are the truth. The memory is ordinary private memory, as with userfaultfd: forked children get a
//! copy, and dropping pages, measuring them and handing them to a heap are the same.

use super::decode::Access;
use super::fill::Step;
use super::region::Region;
use crate::atomic::{AtomicU32, Ordering};
use crate::sys::{self, seam::Call};
use core::ops::Range;
use core::ptr;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use std::os::fd::RawFd;

/// `/proc/self/mem` of this process, or none.
static MEMORY: AtomicU32 = AtomicU32::new(u32::MAX);

/// Makes `descriptor`, or none (-1), the one that pages are written through; tells the one before.
pub(crate) fn set_memory(descriptor: RawFd) -> RawFd {
    // Relaxed: stored before the first region that needs it is published, and published with it; and
    // by the only thread of a forked child.
    MEMORY.swap(descriptor as u32, Ordering::Relaxed) as RawFd
}

/// Whether pages can be written while they are inaccessible.
pub(crate) fn has_memory() -> bool {
    MEMORY.load(Ordering::Relaxed) != u32::MAX
}

/// Writes `len` bytes to `target`, whatever its protection; tells how many came.
///
/// # Safety
/// The target is the caller's. `from` need not be readable, which is an error.
#[inline(always)]
pub(crate) unsafe fn write(target: usize, from: *const u8, len: usize) -> Result<usize, Errno> {
    let descriptor = MEMORY.load(Ordering::Relaxed) as RawFd;
    // SAFETY: the kernel reads `from` as it would for any write(2); the target is the caller's.
    unsafe { sys::write_at(Call::WriteMemory, descriptor, from, len, target) }
}

/// Installs `pages` pages with the bytes at `from`.
pub(super) fn copy(region: &Region, page: usize, from: *const u8, pages: usize) -> Step {
    let len = pages.wrapping_shl(region.page_shift);
    // SAFETY: the pages are missing ones of a reservation of ours, and their chunk this thread's.
    match unsafe { write(region.address_of(page), from, len) } {
        Ok(written) => {
            let done = written >> region.page_shift;
            let all = page..page.wrapping_add(done);
            match open(region, all.clone()) {
                // Cut short by bytes that cannot be read: the next step meets them and says so.
                Ok(()) if done < pages => {
                    Step { pages: done, lent: false, stopped_by: Some(Errno::EAGAIN) }
                }
                Ok(()) => Step { pages: done, lent: false, stopped_by: None },
                Err(errno) => {
                    // Written, but out of reach: as if it had not been.
                    let _ = drop_pages(region, all);
                    Step::stopped(errno)
                }
            }
        }
        Err(errno) => Step::stopped(errno),
    }
}

/// Installs `pages` pages of zeroes: accessible memory that the kernel fills. It does so at once, or
/// else, where it cannot (before Linux 5.14), at the next touch, without a signal.
pub(super) fn zeroes(region: &Region, page: usize, pages: usize, access: Access) -> Step {
    if let Err(errno) = open(region, page..page.wrapping_add(pages)) {
        return Step::stopped(errno);
    }
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    let start = ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: populating changes no content, and the pages are a reservation's of ours.
    let populated = unsafe { sys::advise(start, pages.wrapping_shl(region.page_shift), advice) };
    Step { pages, lent: access == Access::Read || populated.is_err(), stopped_by: None }
}

/// Makes pages accessible.
pub(crate) fn open(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    set(region, pages, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
}

/// Makes pages inaccessible: touching them raises SIGSEGV. What they hold stays.
pub(crate) fn close(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    set(region, pages, ProtFlags::PROT_NONE)
}

#[inline(always)]
fn set(region: &Region, pages: Range<usize>, protection: ProtFlags) -> Result<(), Errno> {
    let start = ptr::with_exposed_provenance_mut(region.address_of(pages.start));
    // SAFETY: the pages are a reservation's of ours, which is told when they are touched.
    unsafe { sys::protect(start, pages.len().wrapping_shl(region.page_shift), protection) }
}

/// Has the kernel drop what pages hold.
pub(crate) fn drop_pages(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    let start = ptr::with_exposed_provenance_mut(region.address_of(pages.start));
    // SAFETY: the pages lie in a reservation of ours, and the caller gives up what they hold.
    unsafe { sys::advise(start, pages.len().wrapping_shl(region.page_shift), libc::MADV_DONTNEED) }
}
