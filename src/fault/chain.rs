//! Foreign faults: what the process would have done with them if lacuna were not there.
//!
//! The disposition *beneath* ours is the one that SIGBUS would have without lacuna. A foreign
//! signal is handed to it, and when its handler changes the disposition of SIGBUS (Rust's own
//! resets it and returns, so that the instruction runs again and kills the process), then the
//! change is taken as one of the disposition beneath, and our handler is put back in front.

use crate::atomic::{AtomicUsize, Ordering, UnsafeCell};
use core::{mem, ptr};
use libc::{c_int, c_void, sigaction, siginfo_t};

/// Dispositions that have been beneath ours, each written once and then only read: a handler may
/// be reading one while another thread adds the next. The kernel's default is at 0.
struct Beneath {
    slots: [UnsafeCell<mem::MaybeUninit<sigaction>>; SLOTS],
    /// Slots given out.
    used: AtomicUsize,
    /// The one in force.
    current: AtomicUsize,
    /// Not 0 if the first disposition found was no handler, but the default or SIG_IGN.
    bare: AtomicUsize,
}

const SLOTS: usize = 16;

// SAFETY: see `slots`.
unsafe impl Sync for Beneath {}

static BENEATH: Beneath = Beneath {
    slots: [const { UnsafeCell::new(mem::MaybeUninit::zeroed()) }; SLOTS],
    used: AtomicUsize::new(1),
    current: AtomicUsize::new(0),
    bare: AtomicUsize::new(0),
};

/// Declares `action` the disposition beneath ours. Should the slots run out, the last one stays:
/// it takes sixteen handlers that were installed by handlers.
pub(crate) fn set_beneath(action: sigaction) {
    // Relaxed: the slot is this caller's from here on.
    let index = match action.sa_sigaction {
        libc::SIG_DFL => 0,
        _ => BENEATH.used.fetch_add(1, Ordering::Relaxed),
    };
    let Some(slot) = BENEATH.slots.get(index) else { return };
    if index > 0 {
        // SAFETY: nobody else was given this slot, and nobody reads it before it is current.
        slot.with_mut(|slot| unsafe { (*slot).write(action) });
    }
    // Release pairs with the Acquire in `beneath`.
    BENEATH.current.store(index, Ordering::Release);
}

/// Declares that the process had no handler for SIGBUS before lacuna.
pub(crate) fn set_bare() {
    BENEATH.bare.store(1, Ordering::Relaxed);
}

fn beneath() -> sigaction {
    let index = BENEATH.current.load(Ordering::Acquire);
    match BENEATH.slots.get(index) {
        // SAFETY: zeroes are a valid sigaction, the default; others were written before.
        Some(slot) => slot.with(|slot| unsafe { (*slot).assume_init() }),
        // SAFETY: as above.
        None => unsafe { mem::zeroed() },
    }
}

/// Hands a foreign SIGBUS on.
///
/// # Safety
/// The arguments are those that the kernel passed to our handler.
#[cold]
#[inline(never)]
pub(crate) unsafe fn forward(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let action = beneath();
    // SAFETY: the kernel passes a valid siginfo.
    let raised = unsafe { (*info).si_code } > 0;
    match action.sa_sigaction {
        libc::SIG_DFL => default(raised, info),
        libc::SIG_IGN if raised => default(raised, info),
        libc::SIG_IGN => {}
        _ => {
            // SAFETY: the action was a handler's, installed with these flags.
            unsafe { call(&action, signal, info, context) };
            stay_in_front();
            let swallowed = BENEATH.bare.load(Ordering::Relaxed) != 0;
            if swallowed && !(raised && is_mended(info)) {
                default(raised, info);
            }
        }
    }
}

/// What the kernel does by default: kills the process. A fault is raised again by its instruction;
/// a signal that was sent is sent again.
fn default(raised: bool, info: *mut siginfo_t) {
    set_default();
    if !raised {
        // SAFETY: the siginfo is the kernel's own; a thread may signal itself with any.
        unsafe {
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                libc::getpid(),
                libc::syscall(libc::SYS_gettid),
                libc::SIGBUS,
                info,
            );
        }
    }
}

/// Gives SIGBUS its default disposition.
pub(crate) fn set_default() {
    // SAFETY: zeroes are a valid sigaction, the default.
    unsafe {
        let action: sigaction = mem::zeroed();
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

/// Calls a handler as the kernel would: with its mask, and forgotten first if it asked for that.
///
/// # Safety
/// `action` holds a handler; the other arguments are the kernel's.
unsafe fn call(action: &sigaction, signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let mut mask = action.sa_mask;
    // SAFETY: the sets are valid; the handler has the type that its flags say.
    unsafe {
        if action.sa_flags & libc::SA_NODEFER == 0 {
            libc::sigaddset(&raw mut mask, signal);
        }
        if action.sa_flags & libc::SA_RESETHAND != 0 {
            set_beneath(mem::zeroed());
        }
        let mut before = mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const mask, &raw mut before);
        let handler = ptr::with_exposed_provenance::<()>(action.sa_sigaction);
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
            mem::transmute::<*const (), Handler>(handler)(signal, info, context);
        } else {
            mem::transmute::<*const (), extern "C" fn(c_int)>(handler)(signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
    }
}

/// Puts our handler back in front if the handler beneath has changed the disposition.
fn stay_in_front() {
    let ours = super::handler::action();
    // SAFETY: the actions are valid; reading and changing a disposition is async-signal-safe.
    unsafe {
        let mut now: sigaction = mem::zeroed();
        libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut now);
        if now.sa_sigaction != ours.sa_sigaction {
            set_beneath(now);
            libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut());
        }
    }
}

/// Whether the access that faulted would succeed now: a handler may have mended its cause.
fn is_mended(info: *mut siginfo_t) -> bool {
    // SAFETY: the kernel passes a valid siginfo, and a raised SIGBUS carries an address.
    let address = unsafe { (*info).si_addr() };
    let page = address.map_addr(|address| address & !(crate::page::page_size().wrapping_sub(1)));
    // SAFETY: populating for reading changes no content.
    unsafe { libc::madvise(page, 1, libc::MADV_POPULATE_READ) == 0 }
}
