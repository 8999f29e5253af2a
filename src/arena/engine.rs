//! What arenas share: the userfaultfd, the zeroes, the SIGBUS handler, the fork hooks. Made when
//! the first arena is, and there until the process ends.

use super::front::{self, CHANGING, install_handler};
use super::mapping::Mapping;
use super::registrar::{REGISTRAR, close_gate, open_gate};
use super::{descriptors, inherit, mprotect};
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::mappings::MAPPINGS;
use crate::fault::region::Region;
use crate::fault::signals::Signal;
use crate::fault::source::Zeroes;
use crate::fault::tuning::{MAPPINGS_SHARE, STAGING_SLOTS};
use crate::fault::{STAGING, ZEROES, registered_with, set_descriptor};
use crate::fork::{self, Hooks, Layer, current_thread};
use crate::lock::MutexGuard;
use crate::page::{CHUNK, page_size};
use crate::uffd::{Ioctls, RegisterMode, Uffd};
use crate::{process, sys};
use core::ptr;
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, IntoRawFd};

/// 1 once everything is there.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// Whether there is a userfaultfd, this process's or the one that it was forked from.
pub(super) fn is_started() -> bool {
    // Acquire pairs with the Release in `start`.
    STARTED.load(Ordering::Acquire) == 1
}

/// Makes sure that faults can be resolved.
pub(super) fn start() -> Result<()> {
    if is_started() {
        return front::undo_reset();
    }
    let _starting = begin()?;
    if is_started() {
        return Ok(());
    }
    let uffd = descriptors::open_first()?;
    let zeroes = map_zeroes()?;
    let staging = Mapping::huge(STAGING_SLOTS * CHUNK)?;
    install_handler(Signal::Bus)?;
    // From here on nothing fails.
    ZEROES.base.store(zeroes.base().as_ptr(), Ordering::Relaxed);
    core::mem::forget(zeroes);
    STAGING.base.store(staging.base().as_ptr(), Ordering::Relaxed);
    core::mem::forget(staging);
    set_mappings_to_lend();
    set_descriptor(uffd.into_fd().into_raw_fd());
    process::set_armed(true);
    STARTED.store(1, Ordering::Release);
    Ok(())
}

/// Begins to make what arenas share, which is one thread's at a time.
///
/// The hooks come first, so that a fork waits for what follows. One that had begun before does not: its
/// child finds the lock free, since the kernel empties the page that it is in, and either everything
/// made, as a child that was forked without hooks, or makes it itself.
pub(super) fn begin() -> Result<MutexGuard<'static, ()>> {
    install_fork_hooks().map_err(hooks_error)?;
    Ok(process::here().map_err(hooks_error)?.starting.lock())
}

fn hooks_error(errno: Errno) -> Error {
    Error::os(Operation::InstallForkHooks, errno)
}

/// Sets how many mappings lending may make: a share of what a process may have.
pub(super) fn set_mappings_to_lend() {
    const DEFAULT: usize = 65_530;
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT);
    MAPPINGS.allow(limit / MAPPINGS_SHARE);
}

/// Maps the zeroes, every page of them present; this also tells whether the kernel has the advice
/// that the handler needs to tell a page which is there from one which cannot be.
fn map_zeroes() -> Result<Mapping> {
    let zeroes = Mapping::zeroes(Zeroes::PAGES * page_size())?;
    // SAFETY: the range is the mapping's; populating changes no content.
    match unsafe { sys::advise(zeroes.base().as_ptr(), zeroes.len(), libc::MADV_POPULATE_READ) } {
        Ok(()) => Ok(zeroes),
        Err(Errno::EINVAL) => Err(Error::new(Operation::Advise, ErrorKind::Unsupported)),
        Err(errno) => Err(Error::os(Operation::Advise, errno)),
    }
}

/// Arenas go on in forked children. The kernel forgets there that the memory was registered, and
/// the inherited descriptor still acts on the parent: the child needs one of its own.
fn install_fork_hooks() -> Result<(), Errno> {
    static LOCKS: Hooks = Hooks { before: lock, in_parent: unlock, in_child: unlock };
    static GATE: Hooks = Hooks { before: stop_faults, in_parent: open_gate, in_child };
    fork::install(Layer::Arenas, &LOCKS)?;
    fork::install(Layer::Faults, &GATE)
}

/// Whether the arenas that there may be work in this process. Where they do not, it may have inherited
/// the locks while somebody held them; its children cannot use arenas either, so there is nothing to
/// do for them.
fn is_usable() -> bool {
    process::is_armed() || !(is_started() || mprotect::is_started())
}

/// Before a fork. The locks are held until after it, on both sides.
fn lock() -> bool {
    let Ok(here) = process::here() else { return false };
    is_usable() && {
        core::mem::forget((here.starting.lock(), CHANGING.lock(), REGISTRAR.lock()));
        true
    }
}

fn unlock() {
    // SAFETY: `lock` locked them, on this thread. In a child the kernel has set the last to free, which
    // it stays.
    unsafe {
        REGISTRAR.force_unlock();
        CHANGING.force_unlock();
        if let Ok(here) = process::here() {
            here.starting.force_unlock();
        }
    }
}

/// Before a fork, last of all: once faults have to wait, no lock must be waited for that a thread
/// holds which a handler may have interrupted.
fn stop_faults() -> bool {
    process::here().is_ok() && is_usable() && {
        // SAFETY: `lock`, which was installed before, locked it, on this thread.
        close_gate(unsafe { &*REGISTRAR.data_ptr() }, current_thread());
        true
    }
}

fn in_child() {
    if is_started() || mprotect::is_started() {
        // SAFETY: `lock` locked it, on this thread, which is the only one.
        inherit::rearm(unsafe { &*REGISTRAR.data_ptr() });
    }
    open_gate();
}

/// Has the kernel fill the missing pages of a region, of zeroes, by itself.
pub(super) fn hand_over(region: &Region) -> Result<()> {
    let address = ptr::with_exposed_provenance_mut(region.base);
    let len = region.pages << region.page_shift;
    // The program may have locked all that there was, mlockall(2); the kernel would fill the whole.
    // SAFETY: the range is a reservation of ours.
    let _ = unsafe { sys::unlock(address, len) };
    let uffd = match region.backend {
        Backend::Userfaultfd => own_uffd(Operation::Unregister, region.is_second)?,
        Backend::Mprotect => return mprotect::hand_over(region),
    };
    // SAFETY: the range is a reservation of ours, of zeroes.
    unsafe { uffd.unregister(address, len) }
}

/// Has the kernel raise SIGBUS for the missing pages of a reservation, and for those of the `shared`
/// bytes at its start that it has not mapped yet, by the first userfaultfd or the second. Tells what can
/// be done to the rest.
pub(super) fn register(start: usize, len: usize, shared: usize, second: bool) -> Result<Ioctls> {
    let mut ioctls = Ioctls::empty();
    if shared > 0 {
        register_for(start, shared, second, RegisterMode::MISSING | RegisterMode::MINOR)?;
    }
    if shared < len {
        ioctls = register_for(start + shared, len - shared, second, RegisterMode::MISSING)?;
    }
    Ok(ioctls)
}

/// Has the pages of a region be write-protected when that is asked for, besides.
pub(super) fn register_writes(region: &Region) -> Result<Ioctls> {
    let len = region.pages << region.page_shift;
    let mode = RegisterMode::MISSING | RegisterMode::WP;
    register_for(region.base, len, region.is_second, mode)
}

fn register_for(start: usize, len: usize, second: bool, mode: RegisterMode) -> Result<Ioctls> {
    let address = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours.
    unsafe { own_uffd(Operation::Register, second)?.register(address, len, mode) }
}

fn own_uffd(operation: Operation, second: bool) -> Result<Uffd<BorrowedFd<'static>>> {
    inherit::check(operation)?;
    registered_with(second).map_err(|errno| Error::os(operation, errno))
}
