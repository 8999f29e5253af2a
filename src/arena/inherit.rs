//! What becomes of arenas in a forked child, whose kernel has forgotten that they are registered. All
//! of this but [`prepare`] and [`check`] runs in the child's fork hook: with the registrar's lock
//! held, and no other thread.
//!
//! What a child is not to inherit is emptied by the kernel, the pages and the tables that say which
//! are there: neither is copied, and there is nothing to walk.

use super::mapping::Mapping;
use super::registrar::Registrar;
use super::{descriptors, engine, mprotect};
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::backing::Backing;
use crate::fault::mappings::MAPPINGS;
use crate::fault::region::HUGE_PAUSED;
use crate::fault::region::Region;
use crate::fault::{lend, protect};
use crate::fork::OnFork;
use crate::process;
use crate::sys;
use core::ops::Range;
use core::ptr;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags};

/// 1 in a child that could not open a userfaultfd, and in its children.
static GAVE_UP: AtomicU32 = AtomicU32::new(0);

/// Has the kernel empty the bytes `own` of a reservation, and the tables that go with it, in children
/// that do not inherit them. It does so for private base pages alone: huge ones, and a shared image before
/// `own`, are emptied by the child's hook.
///
/// Shared memory no child gets of the kernel, but of its hook: one without hooks, in which nothing is
/// registered, would fill missing pages with zeroes, and for its parent as well.
pub(super) fn prepare(
    on_fork: OnFork,
    backing: Backing,
    reservation: &Mapping,
    own: Range<usize>,
    tables: &Mapping,
) -> Result<()> {
    if backing.is_shared() {
        reservation.keep_from_children(own.start, own.len())?;
    }
    if on_fork != OnFork::Inherit {
        if backing.is_ordinary() && !own.is_empty() {
            reservation.wipe_on_fork(own.start, own.len())?;
        }
        tables.wipe_on_fork(0, tables.len())?;
    }
    Ok(())
}

/// Fails in a process whose arenas cannot be used, before it waits for a lock, a pin or a chunk of
/// which it may have inherited no more than that somebody held it.
pub(super) fn check(operation: Operation) -> Result<()> {
    if process::is_armed() {
        return Ok(());
    }
    // Relaxed: set by the only thread of a forked child.
    Err(Error::new(
        operation,
        match GAVE_UP.load(Ordering::Relaxed) {
            0 => ErrorKind::ForkedWithoutHooks,
            _ => ErrorKind::NotRearmed,
        },
    ))
}

/// Opens a userfaultfd of the child's own and registers every region with it.
pub(super) fn rearm(registrar: &Registrar) {
    registrar.forget_pins();
    mprotect::restart();
    if open().is_err() || !registrar.regions().all(|region| take_over(region).is_ok()) {
        process::set_armed(false);
        give_up(registrar);
    }
}

/// Replaces the inherited descriptors, which act on the parent.
fn open() -> Result<()> {
    if !engine::is_started() {
        process::set_armed(true);
        return Ok(());
    }
    descriptors::reopen()?;
    process::set_armed(true);
    Ok(())
}

/// Makes a region what its arena was told to be in children, and has its touches noticed.
fn take_over(region: &Region) -> Result<()> {
    // The kernel has forgotten what is protected, and emptied what the checkpoint saved.
    region.track.forget();
    region.huge.fetch_and(!HUGE_PAUSED, Ordering::Relaxed);
    region.log.forget();
    if !is_lazy(region) {
        return Ok(());
    }
    map_again(region).map_err(|errno| Error::os(Operation::ShareMemory, errno))?;
    match region.on_fork {
        OnFork::Inherit => {}
        OnFork::Wipe => empty(region)?,
        OnFork::Forbid => {
            empty(region)?;
            // Relaxed: no other thread is there yet.
            region.forbidden.store(1, Ordering::Relaxed);
            region.limit.store(0, Ordering::Relaxed);
        }
    }
    if region.backend == Backend::Mprotect {
        return Ok(());
    }
    register(region)
}

/// Has the touches of a region be noticed, except of what is lent: the kernel goes on filling that by
/// itself, and the books go on saying so. No mapping is divided that was not in the parent.
fn register(region: &Region) -> Result<()> {
    let (mut page, mut chunk) = (0, 0);
    while let Some(index) = lend::next_lent_from(region, chunk) {
        chunk = index + 1;
        // A mark may be left of a chunk that was taken back.
        if region.tables.chunk(index).is_some_and(|chunk| chunk.state.is_lent()) {
            let lent = region.pages_of(index);
            register_pages(region, page..lent.start)?;
            page = lent.end;
        }
    }
    register_pages(region, page..region.pages)
}

fn register_pages(region: &Region, pages: Range<usize>) -> Result<()> {
    if pages.is_empty() {
        return Ok(());
    }
    let shift = region.page_shift;
    let shared = region.source.shared_pages().clamp(pages.start, pages.end) - pages.start;
    let (start, len) = (region.address_of(pages.start), pages.len() << shift);
    engine::register(start, len, shared << shift, region.is_second).map(drop)
}

/// Takes note that nothing is present in a region.
fn empty(region: &Region) -> Result<()> {
    let (start, len) = range(region);
    let start = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours, and its pages are the template's from here on.
    let emptied = unsafe { sys::advise(start, len, libc::MADV_DONTNEED) };
    match emptied {
        // The kernel does not empty these by itself, huge pages before Linux 5.18 not even when it is told
        // to. Of a shared image what the parent had written is there still.
        Err(errno)
            if region.backing == Backing::PrivateHuge || region.source.shared_pages() > 0 =>
        {
            return Err(Error::os(Operation::Advise, errno));
        }
        // Fork hooks of others that ran before ours may have touched it, and found zeroes.
        _ => {}
    }
    if region.backend == Backend::Mprotect {
        // One mapping comes of it, which needs none that is not there.
        let _ = protect::close(region, 0..region.pages);
    }
    region.tables.start_anew();
    region.ledger.clear();
    region.counters.clear();
    MAPPINGS.forget(region);
    region.hand.store(0, Ordering::Relaxed);
    Ok(())
}

/// Maps what the child did not get, shared memory, where its parent has it; or something else, which it
/// may not touch either, for a violation to come of that.
fn map_again(region: &Region) -> std::result::Result<(), Errno> {
    let Backing::Shared { file, huge } = region.backing else { return Ok(()) };
    let (start, len) = range(region);
    let start = ptr::with_exposed_provenance_mut(start);
    let (kind, from) = match region.on_fork {
        OnFork::Forbid => (MapFlags::MAP_PRIVATE, None),
        OnFork::Inherit | OnFork::Wipe => (MapFlags::MAP_SHARED, Some((file, 0))),
    };
    // Hooks of others may have mapped something there meanwhile.
    let flags = kind | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED_NOREPLACE;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: nothing is replaced; then, the range is a mapping of ours, and the advice changes no content.
    unsafe {
        sys::map(start, len, protection, flags, from)?;
        if !huge {
            let _ = sys::advise(start, len, libc::MADV_NOHUGEPAGE);
        }
        sys::advise(start, len, libc::MADV_DONTFORK)
    }
}

/// Without a userfaultfd the child would read zeroes where a template should be. It may be about to
/// call exec, so it lives, but its arenas can no longer be touched: that is a SIGSEGV.
fn give_up(registrar: &Registrar) {
    GAVE_UP.store(1, Ordering::Relaxed);
    let message = b"lacuna: no userfaultfd in a forked child: its arenas cannot be accessed\n";
    // SAFETY: the message is valid, and the regions are mappings of ours.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        for region in registrar.regions().filter(|region| is_lazy(region)) {
            let _ = protect::close(region, 0..region.pages);
        }
    }
}

/// Whether the region is not a heap's, which the kernel fills by itself.
fn is_lazy(region: &Region) -> bool {
    // Relaxed: asked where no other thread is left that could change it.
    region.handed_over.load(Ordering::Relaxed) == 0
}

/// The address and the bytes of a region.
fn range(region: &Region) -> (usize, usize) {
    (region.address_of(0), region.pages << region.page_shift)
}
