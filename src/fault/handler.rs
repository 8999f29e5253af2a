//! The signal handler: where the life of a fault begins and ends.

use super::decode::{Access, access, fault_address, is_fetch};
use super::freed;
use super::layers::LAYERS;
use super::region::Region;
use super::registry::Lookup;
use super::signals::{RAISED, Signal, SignalsBlocked};
use super::violation::{self, Refusal, Violation};
use super::{REGISTRY, chain, resolve};
use crate::fork::current_thread;
use crate::process;
use crate::sys::pause;
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
/// - `SA_NODEFER`: the signal stays unblocked in the handler: were it to fault itself, a blocked one
///   would kill the process there and then.
/// - `SA_RESTART`: faults interrupt no system call, but a signal that somebody sends may.
///
/// The mask is everything but what the processor raises: the handler may own a chunk, and another
/// handler that ran on top of it and touched the chunk would wait for ever. A foreign signal is
/// handed on with the mask that it would have had.
pub(crate) fn action(handler: Handler) -> libc::sigaction {
    // SAFETY: zeroes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    // SAFETY: the set is valid, and so are the signals.
    unsafe {
        libc::sigfillset(&raw mut action.sa_mask);
        for signal in RAISED {
            libc::sigdelset(&raw mut action.sa_mask, signal);
        }
    }
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER | libc::SA_RESTART;
    action
}

/// The handler, of SIGBUS and, where a backend needs it, of SIGSEGV: once for each layer that may be
/// beneath it. Only to be taken from here: elsewhere the compiler may make copies, whose addresses
/// would not be known.
pub(crate) static FRONTS: [Handler; LAYERS] = [
    front::<0>,
    front::<1>,
    front::<2>,
    front::<3>,
    front::<4>,
    front::<5>,
    front::<6>,
    front::<7>,
    front::<8>,
    front::<9>,
    front::<10>,
    front::<11>,
    front::<12>,
    front::<13>,
    front::<14>,
    front::<15>,
];

/// A jump: it takes no stack of its own.
extern "C" fn front<const BENEATH: usize>(
    number: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
) {
    enter(number, info, context, BENEATH);
}

/// In place of a layer: what is foreign is left to the caller.
const NOT_HANDED_ON: usize = usize::MAX;

/// What all of them are; true if the fault was ours.
#[inline(never)]
extern "C" fn enter(
    number: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
    beneath: usize,
) -> bool {
    let Some(signal) = Signal::of(number) else { return false };
    let errno = Errno::last();
    // SAFETY: the kernel calls us with these arguments.
    let handled =
        unsafe { handle(signal, info, context) || hand_on(signal, info, context, beneath) };
    errno.set();
    handled
}

/// What becomes of a signal that no arena raised: true if a freed block did. Kept out of the handler's frame.
///
/// # Safety
/// The arguments are those of a handler of `signal` with SA_SIGINFO.
#[cold]
#[inline(never)]
unsafe fn hand_on(
    signal: Signal,
    info: *mut siginfo_t,
    context: *mut c_void,
    beneath: usize,
) -> bool {
    // SAFETY: as the caller promises.
    unsafe {
        let handled = is_of_freed(signal, info, context);
        if !handled && beneath != NOT_HANDED_ON {
            chain::forward(signal, info, context, beneath);
        }
        handled
    }
}

/// Resolves a fault from within somebody else's signal handler; true if it was lacuna's, and the
/// instruction that faulted may run again. False if it was not, and nothing was done.
///
/// For programs whose own handler must stay in front: crash reporters and language runtimes (Breakpad,
/// crash-handler, Go, the JVM) have a place for a function that is asked first. Their handler must be
/// called for SIGBUS, or for SIGSEGV with [`Backend::Mprotect`](crate::Backend::Mprotect), and on an
/// alternate stack (`SA_ONSTACK`) if threads' stacks lie in arenas. There is no need for this if the
/// handler calls the one that it found, lacuna's, or has been put beneath it by
/// [`take_front`](crate::take_front).
///
/// A touch that must not be resolved ends as it always does: the line is printed, the hook called,
/// and the signal gets its default disposition, also if another handler is in front. True is returned,
/// and the process dies when the instruction runs again.
///
/// errno and the thread's signal mask are left as they were; meanwhile all signals but those that the
/// processor raises are blocked. It takes the stack that lacuna's own handler takes, 512 bytes.
///
/// # Safety
/// The arguments are those that the kernel passed to a handler with SA_SIGINFO, which has not
/// returned yet.
///
/// ```
/// use std::ffi::{c_int, c_void};
///
/// extern "C" fn host(_signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
///     // SAFETY: the arguments are the kernel's.
///     if unsafe { lacuna::try_handle(info, context) } {
///         return;
///     }
///     // What the host does about crashes.
///     unsafe { libc::_exit(1) };
/// }
///
/// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
/// unsafe {
///     let mut action: libc::sigaction = std::mem::zeroed();
///     action.sa_sigaction = host as *const () as usize;
///     action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
///     libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut());
///     arena.as_ptr().write(1);
///     assert_eq!(arena.as_ptr().read(), 1);
/// }
/// # Ok::<(), lacuna::Error>(())
/// ```
#[must_use]
pub unsafe fn try_handle(info: *mut siginfo_t, context: *mut c_void) -> bool {
    // As our handler has it, by its mask.
    let _blocked = SignalsBlocked::as_in_handler();
    // SAFETY: as the caller promises.
    enter(unsafe { (*info).si_signo }, info, context, NOT_HANDED_ON)
}

/// Resolves a fault of ours; false if it is foreign.
///
/// # Safety
/// The arguments are those of a handler of `signal` with SA_SIGINFO.
#[inline(always)]
unsafe fn handle(signal: Signal, info: *const siginfo_t, context: *const c_void) -> bool {
    // SAFETY: as the caller promises.
    let Some(address) = (unsafe { fault_address(signal, info) }) else { return false };
    let region = match REGISTRY.pin(address, current_thread) {
        Lookup::Found(region) => region,
        Lookup::Nothing => return false,
        // In a child whose fork nobody told us of, the answer may never change.
        Lookup::Retry if !process::is_armed() => return false,
        Lookup::Retry => {
            // An arena is going, or a fork is about to happen: neither takes long.
            pause(10_000);
            return true;
        }
    };
    // SAFETY: as the caller promises.
    if !region.raises(signal) || signal == Signal::Segv && unsafe { is_fetch(context) } {
        return false;
    }
    let Some(page) = region.page_of(address) else { return false };
    // SAFETY: as the caller promises.
    let access: Access = unsafe { access(context) };
    // In a process that has inherited the region without its userfaultfd, what the handler would
    // install would go to the parent.
    let result = match process::is_armed() {
        true => resolve::resolve(&region, page, access),
        false => Err(Refusal::ForkedWithoutHooks),
    };
    match result {
        Ok(()) => true,
        Err(refusal) => violate(signal, &region, address, access, refusal),
    }
}

/// Ends the process if a fault is a touch of a block of a heap that was freed; false if not. Kept out of the
/// handler's frame.
///
/// # Safety
/// The arguments are those of a handler of `signal` with SA_SIGINFO.
#[cold]
#[inline(never)]
unsafe fn is_of_freed(signal: Signal, info: *const siginfo_t, context: *const c_void) -> bool {
    // SAFETY: as the caller promises; with a positive code there is an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    if signal != Signal::Segv || code <= 0 {
        return false;
    }
    let Some(freed) = freed::find(address) else { return false };
    // SAFETY: as the caller promises.
    let access = unsafe { access(context) };
    violation::die(signal, &Violation::of_freed(&freed, address, access));
    true
}

/// Ends the process, unless the fault is foreign: false then. Kept out of the handler's frame.
#[cold]
#[inline(never)]
fn violate(
    signal: Signal,
    region: &Region,
    address: usize,
    access: Access,
    refusal: Refusal,
) -> bool {
    let Some(bound) = refusal.bound(region, address) else { return false };
    violation::die(signal, &Violation::new(region, address, access, bound));
    true
}
