//! What arenas without userfaultfd share: the SIGSEGV handler, and `/proc/self/mem`.

use super::engine::{begin, set_mappings_to_lend};
use super::front::{install_handler, undo_reset};
use super::mapping::Mapping;
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::ZEROES;
use crate::fault::decode::TELLS_FETCHES;
use crate::fault::protect;
use crate::fault::region::Region;
use crate::fault::signals::Signal;
use crate::fault::source::Zeroes;
use crate::page::page_size;
use crate::process;
use crate::sys::{self, seam::Call};
use nix::errno::Errno;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// 1 once everything is there.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// Whether there are arenas without userfaultfd, in this process or in the one that it was forked from.
pub(super) fn is_started() -> bool {
    // Acquire pairs with the Release in `start`.
    STARTED.load(Ordering::Acquire) == 1
}

/// Makes sure that faults can be resolved.
pub(super) fn start() -> Result<()> {
    if is_started() {
        return undo_reset();
    }
    let _starting = begin()?;
    if is_started() {
        return Ok(());
    }
    if !TELLS_FETCHES {
        // Code that jumped into an arena would fault for ever.
        return Err(Error::new(Operation::Reserve, ErrorKind::Unsupported));
    }
    install_handler(Signal::Segv)?;
    set_mappings_to_lend();
    process::set_armed(true);
    STARTED.store(1, Ordering::Release);
    Ok(())
}

/// Makes sure that pages can be written before they are accessible, with zeroes too where an image has a
/// hole; only arenas that are nothing but zeroes can do without.
pub(super) fn start_writing() -> Result<()> {
    let _starting = begin()?;
    if ZEROES.get().is_null() {
        let zeroes = Mapping::zeroes(Zeroes::PAGES * page_size())?;
        // Relaxed: stored before the first region that needs it is published, and published with it.
        ZEROES.base.store(zeroes.base().as_ptr(), Ordering::Relaxed);
        core::mem::forget(zeroes);
    }
    if protect::has_memory() {
        return Ok(());
    }
    open_memory().and_then(|()| probe()).map_err(|errno| {
        close_memory();
        Error::os(Operation::OpenMemory, errno)
    })
}

fn open_memory() -> Result<(), Errno> {
    let memory = sys::open(Call::OpenMemory, c"/proc/self/mem", libc::O_RDWR)?;
    protect::set_memory(memory.into_raw_fd());
    Ok(())
}

fn close_memory() {
    match protect::set_memory(-1) {
        -1 => {}
        // SAFETY: opened by `open_memory`, and from here on used by nobody.
        inherited => drop(unsafe { OwnedFd::from_raw_fd(inherited) }),
    }
}

/// Readies the mapping at `offset` of a reservation, the first page of which nobody uses yet.
///
/// The kernel joins mappings side by side only if their memory hangs on the same anon_vma, which a
/// mapping gets with its first page and hands on to what is split off it. So the reservation gets one
/// while it is whole; else each run of pages that begins alone would stay a mapping of its own.
pub(super) fn prepare(reservation: &Mapping, offset: usize) -> Result<()> {
    let page = page_size();
    reservation.forbid_huge_pages(offset, reservation.len() - offset)?;
    reservation.open(offset, page)?;
    let base = reservation.base().as_ptr().wrapping_add(offset);
    // SAFETY: the page is accessible, and nobody else's; what is written to it is dropped.
    unsafe {
        base.write_volatile(0);
        let populated = sys::advise(base, page, libc::MADV_POPULATE_WRITE);
        protect::set_populates(populated != Err(Errno::EINVAL));
    }
    reservation.close(offset, page)?;
    reservation.empty(offset, page)
}

/// Writes to a page that is not accessible: a kernel can be told not to allow it.
fn probe() -> Result<(), Errno> {
    let page = Mapping::reserve(page_size()).map_err(|it| it.errno().unwrap_or(Errno::ENOMEM))?;
    let byte = 1u8;
    // SAFETY: the page is the mapping's, the byte is a byte.
    match unsafe { protect::write(page.base().as_ptr().expose_provenance(), &raw const byte, 1) }? {
        1 => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// In a forked child: the inherited descriptor still writes to the parent's memory. Without one of its
/// own, the child's touches of untouched pages are violations, except those of zeroes.
pub(super) fn restart() {
    if protect::has_memory() {
        close_memory();
        let _ = open_memory();
    }
}

/// Makes the whole reservation accessible: the kernel fills it from here on.
pub(super) fn hand_over(region: &Region) -> Result<()> {
    protect::open(region, 0..region.pages).map_err(|errno| Error::os(Operation::Map, errno))
}
