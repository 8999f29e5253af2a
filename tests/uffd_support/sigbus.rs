//! SIGBUS, resolved by a closure of the thread that faults.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::sync::Once;

/// What the kernel reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) address: usize,
    pub(crate) code: c_int,
}

type Resolver<'a> = dyn Fn(Fault) + 'a;

thread_local! {
    static RESOLVER: Cell<Option<*const Resolver<'static>>> = const { Cell::new(None) };
    static SIGNALS: Cell<usize> = const { Cell::new(0) };
}

/// No test needs more signals, and a fault that is not resolved repeats for ever.
const TOO_MANY: usize = 100_000;

/// Runs `body`, passing every SIGBUS that it causes on this thread to `resolve`, which runs inside
/// the signal handler. Returns the number of signals.
pub(crate) fn resolving(resolve: impl Fn(Fault), body: impl FnOnce()) -> usize {
    static INSTALL: Once = Once::new();
    INSTALL.call_once(|| {
        let flags = SaFlags::SA_SIGINFO | SaFlags::SA_NODEFER | SaFlags::SA_ONSTACK;
        let action = SigAction::new(SigHandler::SigAction(handle), flags, SigSet::empty());
        // SAFETY: the handler does nothing that is not async-signal-safe, as far as the closures
        // of the tests keep to it.
        unsafe { sigaction(Signal::SIGBUS, &action) }.unwrap();
    });
    let resolver: *const Resolver<'_> = &raw const resolve;
    // SAFETY: only the lifetime changes, and the pointer is taken back before `resolve` ends.
    let resolver: *const Resolver<'static> = unsafe { std::mem::transmute(resolver) };
    RESOLVER.set(Some(resolver));
    SIGNALS.set(0);
    body();
    RESOLVER.set(None);
    SIGNALS.get()
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    SIGNALS.set(SIGNALS.get() + 1);
    match RESOLVER.get() {
        Some(resolve) if SIGNALS.get() < TOO_MANY => {
            // SAFETY: the kernel hands the handler a valid siginfo, and that of a SIGBUS has an
            // address; the closure outlives the entry in `RESOLVER`.
            unsafe {
                (*resolve)(Fault { address: (*info).si_addr() as usize, code: (*info).si_code });
            }
        }
        // Nobody resolves this: the access runs again and kills the process.
        // SAFETY: the default disposition runs no code.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
        },
    }
}
