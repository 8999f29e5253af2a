//! What arenas share: the userfaultfd, the zeroes, the SIGBUS handler, the fork hooks. Made when
//! the first arena is, and there until the process ends.

use super::front::{self, CHANGING, install_handler};
use super::mapping::Mapping;
use super::mprotect;
use super::registrar::{REGISTRAR, close_gate, open_gate};
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::handler::current_thread;
use crate::fault::lend::MAPPINGS;
use crate::fault::region::Region;
use crate::fault::signals::Signal;
use crate::fault::source::Zeroes;
use crate::fault::tuning::{MAPPINGS_SHARE, STAGING_SLOTS};
use crate::fault::{STAGING, ZEROES, set_descriptor, uffd};
use crate::fork::{self, Hooks, Layer};
use crate::lock::Mutex;
use crate::page::{CHUNK, page_size};
use crate::sys;
use crate::uffd::{Features, Ioctls, RegisterMode, Uffd};
use core::ptr;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

/// 1 once everything is there.
static STARTED: AtomicU32 = AtomicU32::new(0);
/// Held by the thread that makes it.
pub(super) static STARTING: Mutex<()> = Mutex::new(());

/// Makes sure that faults can be resolved.
pub(crate) fn start() -> Result<()> {
    // Acquire pairs with the Release below.
    if STARTED.load(Ordering::Acquire) == 1 {
        return front::undo_reset();
    }
    let _starting = STARTING.lock();
    if STARTED.load(Ordering::Relaxed) == 1 {
        return Ok(());
    }
    // First, so that no fork copies the lock while it is held, but for one that is under way.
    install_fork_hooks()?;
    let uffd = Uffd::builder().features(Features::SIGBUS).open()?;
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
    STARTED.store(1, Ordering::Release);
    Ok(())
}

/// Sets how many mappings lending may make: a share of what a process may have.
pub(super) fn set_mappings_to_lend() {
    const DEFAULT: usize = 65_530;
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    let limit = limit.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT);
    MAPPINGS.most.store(limit / MAPPINGS_SHARE, Ordering::Relaxed);
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
pub(super) fn install_fork_hooks() -> Result<()> {
    static LOCKS: Hooks = Hooks { before: lock, in_parent: unlock, in_child: unlock };
    static GATE: Hooks = Hooks { before: stop_faults, in_parent: open_gate, in_child };
    fork::install(Layer::Arenas, &LOCKS)
        .and_then(|()| fork::install(Layer::Faults, &GATE))
        .map_err(|errno| Error::os(Operation::InstallForkHooks, errno))
}

/// Before a fork. The locks are held until after it, on both sides.
fn lock() {
    core::mem::forget((STARTING.lock(), CHANGING.lock(), REGISTRAR.lock()));
}

fn unlock() {
    // SAFETY: `lock` locked them, on this thread.
    unsafe {
        REGISTRAR.force_unlock();
        CHANGING.force_unlock();
        STARTING.force_unlock();
    }
}

/// Before a fork, last of all: once faults have to wait, no lock must be waited for that a thread
/// holds which a handler may have interrupted.
fn stop_faults() {
    // SAFETY: `lock`, which was installed before, locked it, on this thread.
    close_gate(unsafe { &*REGISTRAR.data_ptr() }, current_thread());
}

fn in_child() {
    if STARTED.load(Ordering::Acquire) == 1 && rearm().is_err() {
        give_up();
    }
    mprotect::restart();
    open_gate();
}

/// Opens a userfaultfd of the child's own and registers every region with it.
fn rearm() -> Result<()> {
    let inherited = uffd().as_fd().as_raw_fd();
    // SAFETY: the descriptor is this process's copy, and from here on used by nobody.
    drop(unsafe { OwnedFd::from_raw_fd(inherited) });
    let own = Uffd::builder().features(Features::SIGBUS).open()?;
    set_descriptor(own.into_fd().into_raw_fd());
    // SAFETY: `lock` locked it, on this thread, which is the only one.
    let registrar = unsafe { &*REGISTRAR.data_ptr() };
    registrar.regions().filter(|region| is_registered(region)).try_for_each(|region| {
        let (start, len) = (region.address_of(0), region.pages << region.page_shift);
        register(start, len).map(drop)
    })
}

/// Whether the region is registered: not one of another backend's, nor a heap's, which the kernel
/// fills by itself.
fn is_registered(region: &Region) -> bool {
    // Relaxed: asked in a forked child, where no other thread is left that could change it.
    region.backend == Backend::Userfaultfd && region.handed_over.load(Ordering::Relaxed) == 0
}

/// Without a userfaultfd the child would read zeroes where a template should be. It may be about to
/// call exec, so it lives, but its arenas can no longer be touched: that is a SIGSEGV.
fn give_up() {
    let message = b"lacuna: no userfaultfd in a forked child: its arenas cannot be accessed\n";
    // SAFETY: the message is valid, the regions are mappings of ours, and the lock is held.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        for region in (*REGISTRAR.data_ptr()).regions().filter(|region| is_registered(region)) {
            let start = ptr::with_exposed_provenance_mut(region.address_of(0));
            libc::mprotect(start, region.pages << region.page_shift, libc::PROT_NONE);
        }
    }
}

/// Has the kernel fill the missing pages of a region, of zeroes, by itself.
pub(super) fn hand_over(region: &Region) -> Result<()> {
    let address = ptr::with_exposed_provenance_mut(region.base);
    match region.backend {
        // SAFETY: the range is a reservation of ours, of zeroes.
        Backend::Userfaultfd => unsafe {
            uffd().unregister(address, region.pages << region.page_shift)
        },
        Backend::Mprotect => mprotect::hand_over(region),
    }
}

/// Has the kernel raise SIGBUS for the missing pages of a reservation.
pub(crate) fn register(start: usize, len: usize) -> Result<Ioctls> {
    let address = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours.
    unsafe { uffd().register(address, len, RegisterMode::MISSING) }
}
