//! What arenas share: the userfaultfd, the zeroes, the SIGBUS handler, the fork hooks. Made when
//! the first arena is, and there until the process ends.

use super::mapping::Mapping;
use super::registrar::{REGISTRAR, close_gate, open_gate};
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::handler::current_thread;
use crate::fault::lend::MAPPINGS;
use crate::fault::region::Region;
use crate::fault::source::Zeroes;
use crate::fault::tuning::{MAPPINGS_SHARE, STAGING_SLOTS};
use crate::fault::{STAGING, ZEROES, chain, handler, set_descriptor, uffd};
use crate::fork::{self, Hooks, Layer};
use crate::lock::Mutex;
use crate::page::{CHUNK, page_size};
use crate::uffd::{Features, Ioctls, RegisterMode, Uffd};
use core::ptr;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

/// 1 once everything is there.
static STARTED: AtomicU32 = AtomicU32::new(0);
/// Held by the thread that makes it.
static STARTING: Mutex<()> = Mutex::new(());

/// Makes sure that faults can be resolved.
pub(crate) fn start() -> Result<()> {
    // Acquire pairs with the Release below.
    if STARTED.load(Ordering::Acquire) == 1 {
        return Ok(());
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
    install_handler()?;
    // From here on nothing fails.
    ZEROES.base.store(zeroes.base().as_ptr(), Ordering::Relaxed);
    core::mem::forget(zeroes);
    STAGING.base.store(staging.base().as_ptr(), Ordering::Relaxed);
    core::mem::forget(staging);
    MAPPINGS.most.store(mappings_to_lend(), Ordering::Relaxed);
    set_descriptor(uffd.into_fd().into_raw_fd());
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
    static LOCKS: Hooks = Hooks { before: lock, in_parent: unlock, in_child: unlock };
    static GATE: Hooks = Hooks { before: stop_faults, in_parent: open_gate, in_child };
    fork::install(Layer::Arenas, &LOCKS)
        .and_then(|()| fork::install(Layer::Faults, &GATE))
        .map_err(|errno| Error::os(Operation::InstallForkHooks, errno))
}

/// Before a fork. The locks are held until after it, on both sides.
fn lock() {
    core::mem::forget((STARTING.lock(), REGISTRAR.lock()));
}

fn unlock() {
    // SAFETY: `lock` locked them, on this thread.
    unsafe {
        REGISTRAR.force_unlock();
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
    registrar.regions().filter(|region| is_lazy(region)).try_for_each(|region| {
        let (start, len) = (region.address_of(0), region.pages << region.page_shift);
        register(start, len).map(drop)
    })
}

/// Whether the region is not a heap's, which the kernel fills by itself.
fn is_lazy(region: &Region) -> bool {
    // Relaxed: asked in a forked child, where no other thread is left that could change it.
    region.handed_over.load(Ordering::Relaxed) == 0
}

/// Without a userfaultfd the child would read zeroes where a template should be. It may be about to
/// call exec, so it lives, but its arenas can no longer be touched: that is a SIGSEGV.
fn give_up() {
    let message = b"lacuna: no userfaultfd in a forked child: its arenas cannot be accessed\n";
    // SAFETY: the message is valid, the regions are mappings of ours, and the lock is held.
    unsafe {
        libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), message.len());
        for region in (*REGISTRAR.data_ptr()).regions().filter(|region| is_lazy(region)) {
            let start = ptr::with_exposed_provenance_mut(region.address_of(0));
            libc::mprotect(start, region.pages << region.page_shift, libc::PROT_NONE);
        }
    }
}

/// Has the kernel fill the missing pages of a reservation by itself.
pub(crate) fn unregister(start: usize, len: usize) -> Result<()> {
    let address = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours, of zeroes.
    unsafe { uffd().unregister(address, len) }
}

/// Has the kernel raise SIGBUS for the missing pages of a reservation.
pub(crate) fn register(start: usize, len: usize) -> Result<Ioctls> {
    let address = ptr::with_exposed_provenance_mut(start);
    // SAFETY: the range is a reservation of ours.
    unsafe { uffd().register(address, len, RegisterMode::MISSING) }
}
