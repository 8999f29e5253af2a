//! What arenas share: the userfaultfd, the zeroes, the SIGBUS handler, the fork hooks. Made when
//! the first arena is, and there until the process ends.

use super::inherit;
use super::mapping::Mapping;
use super::registrar::{REGISTRAR, close_gate, open_gate};
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::lend::MAPPINGS;
use crate::fault::source::Zeroes;
use crate::fault::tuning::{MAPPINGS_SHARE, STAGING_SLOTS};
use crate::fault::{STAGING, ZEROES, chain, handler, set_descriptor, uffd};
use crate::fork::{self, Hooks, Layer, current_thread};
use crate::page::{CHUNK, page_size};
use crate::process;
use crate::uffd::{Features, Ioctls, RegisterMode, Uffd};
use core::ptr;
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, IntoRawFd};

/// 1 once everything is there.
static STARTED: AtomicU32 = AtomicU32::new(0);

/// Makes sure that faults can be resolved.
pub(crate) fn start() -> Result<()> {
    // Acquire pairs with the Release below.
    if STARTED.load(Ordering::Acquire) == 1 {
        return inherit::check(Operation::Reserve);
    }
    // First, so that a fork waits for what follows. One that had begun before does not: its child
    // finds the lock free, since the kernel empties the page that it is in, and either everything
    // made, as a child that was forked without hooks, or makes it itself.
    install_fork_hooks()?;
    let _starting = process::here().map_err(hooks_error)?.starting.lock();
    if STARTED.load(Ordering::Relaxed) == 1 {
        return Ok(());
    }
    let uffd = Uffd::builder().features(Features::SIGBUS).open()?;
    let zeroes = map_zeroes()?;
    let staging = Mapping::huge(STAGING_SLOTS * CHUNK)?;
    install_handler()?;
    // From here on nothing fails.
    ZEROES.base.store(zeroes.base().as_ptr(), Ordering::Relaxed);
    core::mem::forget(zeroes);
    STAGING.base.store(staging.base().as_ptr(), Ordering::Relaxed);
    core::mem::forget(staging);
    MAPPINGS.most.store(mappings_to_lend(), Ordering::Relaxed);
    set_descriptor(uffd.into_fd().into_raw_fd());
    process::set_armed(true);
    STARTED.store(1, Ordering::Release);
    Ok(())
}

/// How many mappings lending may make: a share of what a process may have.
fn mappings_to_lend() -> usize {
    const DEFAULT: usize = 65_530;
    let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok();
    limit.and_then(|text| text.trim().parse().ok()).unwrap_or(DEFAULT) / MAPPINGS_SHARE
}

/// Maps the zeroes, every page of them present; this also tells whether the kernel has the advice
/// that the handler needs to tell a page which is there from one which cannot be.
fn map_zeroes() -> Result<Mapping> {
    let zeroes = Mapping::zeroes(Zeroes::PAGES * page_size())?;
    // SAFETY: the range is the mapping's; populating changes no content.
    let result = unsafe {
        libc::madvise(zeroes.base().as_ptr().cast(), zeroes.len(), libc::MADV_POPULATE_READ)
    };
    match result {
        0 => Ok(zeroes),
        _ if Errno::last() == Errno::EINVAL => {
            Err(Error::new(Operation::Advise, ErrorKind::Unsupported))
        }
        _ => Err(Error::os(Operation::Advise, Errno::last())),
    }
}

/// Puts our handler in front, with signal-hook-registry's beneath it: claiming its SIGBUS slot now
/// means that it never installs itself over ours, and that whatever is registered through it, before
/// or after, runs for the foreign signals that we hand on.
fn install_handler() -> Result<()> {
    let error = |errno| Error::os(Operation::InstallHandler, errno);
    let bridge = handler::action(chain::beneath_registry);
    let before = exchange(&bridge).map_err(error)?;
    // It is ours already if an earlier start failed half-way.
    if before.sa_sigaction != bridge.sa_sigaction {
        chain::set_beneath(before);
    }
    // SAFETY: the action does nothing.
    unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, |_| {}) }
        .map_err(|cause| error(Errno::from_raw(cause.raw_os_error().unwrap_or(0))))?;
    let registry = exchange(&handler::action(handler::front)).map_err(error)?;
    // If the slot was taken before, the registry's handler is what we found beneath.
    if registry.sa_sigaction != bridge.sa_sigaction {
        chain::set_registry(registry);
    }
    Ok(())
}

/// Gives SIGBUS the disposition `action`, and returns the one before.
fn exchange(action: &libc::sigaction) -> nix::Result<libc::sigaction> {
    // SAFETY: zeroes are a valid sigaction, which sigaction(2) overwrites; the handlers of the new
    // one pass on what is not ours.
    unsafe {
        let mut before = core::mem::zeroed();
        Errno::result(libc::sigaction(libc::SIGBUS, action, &raw mut before))?;
        Ok(before)
    }
}

/// Arenas go on in forked children. The kernel forgets there that the memory was registered, and
/// the inherited descriptor still acts on the parent: the child needs one of its own.
fn install_fork_hooks() -> Result<()> {
    static HOOKS: Hooks = Hooks { before: before_fork, in_parent: after_fork, in_child };
    fork::install(Layer::Arenas, &HOOKS).map_err(hooks_error)
}

fn hooks_error(errno: Errno) -> Error {
    Error::os(Operation::InstallForkHooks, errno)
}

fn before_fork() -> bool {
    // A process that cannot use its arenas may have inherited the locks while somebody held them;
    // its children cannot either, so there is nothing to do for them.
    if STARTED.load(Ordering::Acquire) == 1 && !process::is_armed() {
        return false;
    }
    let Ok(here) = process::here() else { return false };
    let starting = here.starting.lock();
    let registrar = REGISTRAR.lock();
    close_gate(&registrar, current_thread());
    // Held until after the fork, on both sides.
    core::mem::forget((starting, registrar));
    true
}

fn after_fork() {
    open_gate();
    // SAFETY: `before_fork` locked them, on this thread. In a child the kernel has set the second to
    // free, which it stays.
    unsafe {
        REGISTRAR.force_unlock();
        if let Ok(here) = process::here() {
            here.starting.force_unlock();
        }
    }
}

fn in_child() {
    if STARTED.load(Ordering::Acquire) == 1 {
        // SAFETY: `before_fork` locked it, on this thread, which is the only one.
        inherit::rearm(unsafe { &*REGISTRAR.data_ptr() });
    }
    after_fork();
}

/// Has the kernel fill the missing pages of a reservation by itself.
pub(crate) fn unregister(start: usize, len: usize) -> Result<()> {
    let address = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours, of zeroes.
    unsafe { own_uffd(Operation::Unregister)?.unregister(address, len) }
}

/// Has the kernel raise SIGBUS for the missing pages of a reservation.
pub(crate) fn register(start: usize, len: usize) -> Result<Ioctls> {
    let address = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours.
    unsafe { own_uffd(Operation::Register)?.register(address, len, RegisterMode::MISSING) }
}

fn own_uffd(operation: Operation) -> Result<Uffd<BorrowedFd<'static>>> {
    inherit::check(operation)?;
    uffd().map_err(|errno| Error::os(operation, errno))
}
