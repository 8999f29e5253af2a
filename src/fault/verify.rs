//! Pages that are said to be present and fault nevertheless: what is wrong with them.

use super::backend::Backend;
use super::decode::Access;
use super::fill::fill;
use super::protect;
use super::region::{Counters, Region};
use super::resolve::{ATTEMPTS, alone, may_pass};
use super::tables::Chunk;
use super::track::is_marked;
use super::violation::Refusal;
use super::want::Want;
use crate::sys::{self, pause};
use nix::errno::Errno;

/// Makes sure that a page which is said to be present, and not poisoned, can be accessed: that
/// another thread has just installed it, or the kernel can, and the instruction will not fault on
/// it for ever.
///
/// What stands in the way may be a marker that somebody left behind our back (write protection,
/// poison, a guard), or the page may have been dropped behind our back: then it is installed again.
#[inline(never)]
pub(super) fn verify(
    region: &Region,
    chunk: &Chunk<'_>,
    page: usize,
    access: Access,
    errno: Errno,
) -> Result<(), Refusal> {
    if chunk.is_poisoned(page) {
        return Err(Refusal::Poisoned);
    }
    Counters::count(&region.counters.raced);
    let page_index = region.pages_of(chunk.index).start.saturating_add(page);
    if region.backend == Backend::Mprotect {
        return protect::verify(region, chunk, page, access, errno);
    }
    let tracked = access == Access::Write && region.track.is_by_signal();
    if tracked && region.track.is_on() && chunk.is_present(page) && !is_marked(region, page_index) {
        // Most likely protected. Should it have been dropped as well, it faults again, and is marked then.
        return Err(Refusal::Protected);
    }
    // The kernel cannot write to a protected page.
    let asked = if tracked { Access::Read } else { access };
    if is_accessible(region, page_index, asked) {
        // Unless present by its bit, it is as good as: somebody is about to set it.
        let protected = tracked && chunk.is_present(page);
        return if protected { Err(Refusal::Protected) } else { Ok(()) };
    }
    let errno = match chunk.is_present(page) {
        true => {
            match install_again(region, page_index, access, wanted_again(chunk, page, access)) {
                Ok(()) => return Ok(()),
                // The kernel fills the chunk by itself, so it is not that the page is missing.
                Err(Errno::ENOENT) => errno,
                Err(errno) => errno,
            }
        }
        false => errno,
    };
    match errno {
        // UFFDIO_COPY says so too when the pool of huge pages is empty (seen on Linux 6.18), as it does
        // of a page that is there and cannot be written, having to be copied.
        Errno::EEXIST if region.backing.is_huge() => Err(Refusal::OutOfMemory),
        // Another process had installed it, and has discarded it since.
        Errno::EEXIST if was_discarded(region, page_index) => Ok(()),
        Errno::ENOMEM => Err(Refusal::OutOfMemory),
        errno => Err(Refusal::Unresolvable(errno)),
    }
}

/// What page `index` of a chunk, which is counted already, is installed again as: what is lent and read takes
/// no memory again. What is lent and written may become memory without being counted as that.
#[inline(never)]
fn wanted_again(chunk: &Chunk<'_>, index: usize, access: Access) -> Want {
    match chunk.lent().is_some_and(|lent| lent.get(index)) {
        true => Want::ahead_of(access),
        false => Want::Memory,
    }
}

/// Installs a page that is counted and charged already, so nothing is recorded again: somebody has
/// dropped it, or the kernel has, which may do so with what it finds elsewhere as well.
#[cold]
#[inline(never)]
fn install_again(region: &Region, page: usize, access: Access, want: Want) -> Result<(), Errno> {
    let mut result = Err(Errno::EAGAIN);
    for _ in 0..ATTEMPTS {
        let filled = fill(region, alone(page), want);
        result = match filled.stopped_by {
            _ if filled.pages() == 1 => Ok(()),
            Some(Errno::EBUSY) | None => Ok(()),
            // Another thread was faster, or another process.
            Some(Errno::EEXIST) if is_accessible(region, page, access) => Ok(()),
            Some(errno) => Err(errno),
        };
        match result {
            Err(errno) if may_pass(region, errno) => pause(1_000_000),
            // Somebody may drop it again between the two; or something is in the way.
            Err(Errno::EEXIST) => pause(10_000),
            _ => break,
        }
    }
    result
}

/// Whether the memory is shared with other processes, and does not have a page now. There are no
/// markers in page tables that could look the same: only this library could have put them there.
#[cold]
#[inline(never)]
fn was_discarded(region: &Region, page: usize) -> bool {
    let start = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: the page is one of a reservation of ours.
    region.backing.is_shared() && unsafe { sys::resident(start) } == Ok(false)
}

/// Asks the kernel to fault the page in by itself, as madvise(2) MADV_POPULATE_READ or _WRITE does
/// without changing it (since Linux 5.14). EFAULT means that it could only raise SIGBUS again, and
/// EHWPOISON that the page is poisoned; any other failure is one that the instruction meets without
/// us.
pub(crate) fn is_accessible(region: &Region, page: usize, access: Access) -> bool {
    let advice = match access {
        Access::Read => libc::MADV_POPULATE_READ,
        Access::Write => libc::MADV_POPULATE_WRITE,
    };
    let start = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: populating changes no content, and the page is part of a reservation of ours.
    let result = unsafe { sys::advise(start, 1 << region.page_shift, advice) };
    match region.backend {
        Backend::Userfaultfd => !matches!(result, Err(Errno::EFAULT | Errno::EHWPOISON)),
        // EINVAL there: the protection does not allow it.
        Backend::Mprotect => !matches!(result, Err(Errno::EFAULT | Errno::EINVAL)),
    }
}
