//! Foreign faults: what the process would have done with them if lacuna were not there.
//!
//! ```text
//!  the kernel -> our handler -> signal-hook-registry's -> beneath_registry -> the handler beneath
//!                                     `-> its actions
//! ```
//! The disposition *beneath* is the one that a signal would have without lacuna; SIGBUS and SIGSEGV
//! have one each. signal-hook-registry, which knows SIGBUS only, has a place of its own: its
//! handler runs whatever was there before it and then its actions; what was there is a function of
//! ours, so that we call the handler beneath as the kernel would. When that changes the disposition
//! of SIGBUS (Rust's own resets it and returns, so that the instruction runs again and kills the
//! process), it has changed it for the registry too: the change is taken as the whole of what is
//! beneath, and our handler is put back in front.

use super::handler::{Handler, action, front};
use super::signals::{Signal, bit, bits, set_mask};
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
    /// The one of signal-hook-registry's handler while that lies between; else 0.
    registry: AtomicUsize,
}

const SLOTS: usize = 16;

// SAFETY: see `slots`.
unsafe impl Sync for Beneath {}

static BUS: Beneath = Beneath::new();
static SEGV: Beneath = Beneath::new();

impl Beneath {
    const fn new() -> Self {
        Self {
            slots: [const { UnsafeCell::new(mem::MaybeUninit::zeroed()) }; SLOTS],
            used: AtomicUsize::new(1),
            current: AtomicUsize::new(0),
            registry: AtomicUsize::new(0),
        }
    }

    fn of(signal: Signal) -> &'static Self {
        match signal {
            Signal::Bus => &BUS,
            Signal::Segv => &SEGV,
        }
    }

    /// Keeps an action and tells where; `None` if there is no room, which takes a dozen handlers
    /// that were installed by handlers.
    fn keep(&self, action: sigaction) -> Option<usize> {
        if action.sa_sigaction == libc::SIG_DFL {
            return Some(0);
        }
        // Relaxed: the slot is this caller's from here on.
        let index = self.used.fetch_add(1, Ordering::Relaxed);
        // SAFETY: nobody else was given this slot, and nobody reads it before it is in force.
        self.slots.get(index)?.with_mut(|slot| unsafe { (*slot).write(action) });
        Some(index)
    }

    fn get(&self, index: usize) -> sigaction {
        let read = |slot: *const mem::MaybeUninit<sigaction>| {
            // SAFETY: slots are zeroes, a valid sigaction, or written before they are in force.
            unsafe { (*slot).assume_init() }
        };
        // SAFETY: zeroes are a valid sigaction, the default.
        self.slots.get(index).map_or(unsafe { mem::zeroed() }, |slot| slot.with(read))
    }

    fn in_force(&self) -> sigaction {
        self.get(self.current.load(Ordering::Acquire))
    }
}

/// Declares `action` the disposition beneath ours; without room it stays what it was.
pub(crate) fn set_beneath(signal: Signal, action: sigaction) {
    let beneath = Beneath::of(signal);
    if let Some(index) = beneath.keep(action) {
        // Release pairs with the Acquire in `in_force`: the slot is written.
        beneath.current.store(index, Ordering::Release);
    }
}

/// Declares `action` signal-hook-registry's handler of SIGBUS, with [`beneath_registry`] beneath it.
pub(crate) fn set_registry(action: sigaction) {
    if let Some(index) = BUS.keep(action) {
        BUS.registry.store(index, Ordering::Release);
    }
}

/// What signal-hook-registry finds when it installs its handler, and runs before its actions.
pub(crate) extern "C" fn beneath_registry(
    _number: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
) {
    let action = BUS.in_force();
    if is_handler(&action) {
        // SAFETY: the arguments are the kernel's, passed on.
        unsafe { call(&action, Signal::Bus, info, context) };
    }
}

/// Hands a foreign signal on.
///
/// # Safety
/// The arguments are those that the kernel passed to our handler.
#[cold]
#[inline(never)]
pub(crate) unsafe fn forward(signal: Signal, info: *mut siginfo_t, context: *mut c_void) {
    let beneath = Beneath::of(signal);
    let (action, registry) = (beneath.in_force(), beneath.registry.load(Ordering::Acquire));
    // SAFETY: as the caller promises; the actions were handlers, installed with these flags.
    let raised = unsafe {
        if registry != 0 {
            call(&beneath.get(registry), signal, info, context);
            stay_in_front(signal);
        } else if is_handler(&action) {
            call(&action, signal, info, context);
            stay_in_front(signal);
        }
        (*info).si_code > 0
    };
    match action.sa_sigaction {
        // An action may have mended the cause.
        libc::SIG_DFL | libc::SIG_IGN if raised && registry != 0 && is_mended(info) => {}
        libc::SIG_DFL => default(signal, raised, info),
        // The kernel does not let a fault be ignored.
        libc::SIG_IGN if raised => default(signal, raised, info),
        _ => {}
    }
}

fn is_handler(action: &sigaction) -> bool {
    !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
}

/// What the kernel does by default: kills the process. A fault is raised again by its instruction;
/// a signal that was sent is sent again.
fn default(signal: Signal, raised: bool, info: *mut siginfo_t) {
    set_default(signal);
    if !raised {
        // SAFETY: the siginfo is the kernel's own; a thread may signal itself with any.
        unsafe {
            libc::syscall(
                libc::SYS_rt_tgsigqueueinfo,
                libc::getpid(),
                libc::syscall(libc::SYS_gettid),
                signal.number(),
                info,
            );
        }
    }
}

/// Gives a signal its default disposition.
pub(crate) fn set_default(signal: Signal) {
    // SAFETY: zeroes are a valid sigaction, the default.
    unsafe {
        let action: sigaction = mem::zeroed();
        libc::sigaction(signal.number(), &raw const action, ptr::null_mut());
    }
}

/// Calls a handler as the kernel would: with its mask, and forgotten first if it asked for that.
///
/// # Safety
/// `action` holds a handler; the other arguments are the kernel's.
unsafe fn call(action: &sigaction, signal: Signal, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid ucontext.
    let interrupted = unsafe { bits(&(*context.cast::<libc::ucontext_t>()).uc_sigmask) };
    let mut mask = interrupted | bits(&action.sa_mask);
    if action.sa_flags & libc::SA_NODEFER == 0 {
        mask |= bit(signal.number());
    }
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        // SAFETY: zeroes are a valid sigaction, the default.
        set_beneath(signal, unsafe { mem::zeroed() });
    }
    let ours = set_mask(mask);
    let handler = ptr::with_exposed_provenance::<()>(action.sa_sigaction);
    // SAFETY: the handler has the type that its flags say.
    unsafe {
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            mem::transmute::<*const (), Handler>(handler)(signal.number(), info, context);
        } else {
            mem::transmute::<*const (), extern "C" fn(c_int)>(handler)(signal.number());
        }
    }
    set_mask(ours);
}

/// Puts our handler back in front if the handler beneath has changed the disposition.
fn stay_in_front(signal: Signal) {
    let ours = action(front);
    // SAFETY: the actions are valid; reading and changing a disposition is async-signal-safe.
    unsafe {
        let mut now: sigaction = mem::zeroed();
        libc::sigaction(signal.number(), ptr::null(), &raw mut now);
        if now.sa_sigaction != ours.sa_sigaction {
            set_beneath(signal, now);
            Beneath::of(signal).registry.store(0, Ordering::Release);
            libc::sigaction(signal.number(), &raw const ours, ptr::null_mut());
        }
    }
}

/// Whether the access that faulted would succeed now: a handler may have mended its cause.
fn is_mended(info: *mut siginfo_t) -> bool {
    // SAFETY: the kernel passes a valid siginfo, and a fault's carries an address.
    let address = unsafe { (*info).si_addr() };
    let page = address.map_addr(|address| address & !(crate::page::page_size().wrapping_sub(1)));
    // SAFETY: populating for reading changes no content.
    unsafe { libc::madvise(page, 1, libc::MADV_POPULATE_READ) == 0 }
}
