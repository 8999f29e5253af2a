//! The SIGBUS handler: where the life of a fault begins and ends.

use super::decode::{Access, access, fault_address};
use super::region::Region;
use super::registry::Lookup;
use super::violation::{self, Bound, Violation};
use super::{REGISTRY, chain, resolve};
use crate::fork::current_thread;
use crate::process;
use core::mem;
use libc::{c_int, c_void, siginfo_t};
use nix::errno::Errno;

/// A handler with SA_SIGINFO.
pub(crate) type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// The disposition that puts a handler of ours in front.
///
/// - `SA_SIGINFO`: the faulting address, and the context that tells reads from writes.
/// - `SA_ONSTACK`: the stack pointer may be about to leave its stack, or be a coroutine's small
///   one; and runtimes such as Go's demand it. Without an alternate stack it changes nothing.
/// - `SA_NODEFER`: SIGBUS stays unblocked in the handler: were it to fault itself, a blocked SIGBUS
///   would kill the process there and then.
/// - `SA_RESTART`: faults interrupt no system call, but a SIGBUS that somebody sends may.
///
/// The mask is everything but what the processor raises: the handler may own a chunk, and another
/// handler that ran on top of it and touched the chunk would wait for ever. A foreign signal is
/// handed on with the mask that it would have had.
pub(crate) fn action(handler: Handler) -> libc::sigaction {
    // SAFETY: zeroes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    let raised = [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];
    // SAFETY: the set is valid, and so are the signals.
    unsafe {
        libc::sigfillset(&raw mut action.sa_mask);
        for signal in raised {
            libc::sigdelset(&raw mut action.sa_mask, signal);
        }
    }
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
    action
}

/// The handler.
pub(crate) extern "C" fn front(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let errno = Errno::last();
    // SAFETY: the kernel calls us with these arguments.
    unsafe {
        if !handle(info, context) {
            chain::forward(signal, info, context);
        }
    }
    errno.set();
}

/// Resolves a fault of ours; false if it is foreign.
///
/// # Safety
/// The arguments are those of a SIGBUS handler with SA_SIGINFO.
unsafe fn handle(info: *const siginfo_t, context: *const c_void) -> bool {
    // SAFETY: as the caller promises.
    let Some(address) = (unsafe { fault_address(info) }) else { return false };
    let region = match REGISTRY.pin(address, current_thread) {
        Lookup::Found(region) => region,
        Lookup::Nothing => return false,
        // In a child whose fork nobody told us of, the answer may never change.
        Lookup::Retry if !process::is_armed() => return false,
        Lookup::Retry => {
            // An arena is going, or a fork is about to happen: neither takes long.
            resolve::pause(10_000);
            return true;
        }
    };
    let Some(page) = region.page_of(address) else { return false };
    // SAFETY: as the caller promises.
    let access: Access = unsafe { access(context) };
    // In a process that has inherited the region without its userfaultfd, what the handler would
    // install would go to the parent.
    let result = match process::is_armed() {
        true => resolve::resolve(&region, page, access),
        false => Err(Bound::ForkedWithoutHooks),
    };
    if let Err(bound) = result {
        violate(&region, address, access, bound);
    }
    true
}

/// Kept out of the handler's frame.
#[cold]
#[inline(never)]
fn violate(region: &Region, address: usize, access: Access, bound: Bound) {
    violation::die(&Violation::new(region, address, access, bound));
}
