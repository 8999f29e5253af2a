//! Foreign faults: what the process would have done with them if lacuna were not there.
//!
//! ```text
//!  the kernel -> our handler -> signal-hook-registry's -> beneath_registry -> the handler beneath
//!                                     `-> its actions
//! ```
//! What is beneath our handler is one of the [`layers`](super::layers) of its signal. For SIGBUS the
//! first is signal-hook-registry's handler, which runs whatever was there before it and then its
//! actions; what was there is a function of ours, so that we call the handler beneath as the kernel
//! would. When a handler beneath changes the disposition of its signal (Rust's own resets it and
//! returns, so that the instruction runs again and kills the process), the change is taken as the
//! whole of what is beneath, and our handler is put back in front.

use super::handler::{FRONTS, Handler, action};
use super::layers::{Layer, Layers, same};
use super::signals::{Signal, bit, bits, set_mask};
use crate::atomic::{AtomicUsize, Ordering};
use core::{mem, ptr};
use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};

/// The layer that signal-hook-registry's handler was installed over, and calls by way of
/// [`beneath_registry`].
static BENEATH_REGISTRY: AtomicUsize = AtomicUsize::new(0);

/// Declares what signal-hook-registry's handler is installed over.
pub(crate) fn set_beneath_registry(layer: usize) {
    // Release pairs with the Acquire below: the layer is written.
    BENEATH_REGISTRY.store(layer, Ordering::Release);
}

fn beneath_registry_now() -> &'static Layer {
    Layers::of(Signal::Bus).get(BENEATH_REGISTRY.load(Ordering::Acquire))
}

/// What signal-hook-registry finds when it installs its handler, and runs before its actions.
pub(crate) extern "C" fn beneath_registry(
    _number: c_int,
    info: *mut siginfo_t,
    context: *mut c_void,
) {
    let layer = beneath_registry_now();
    if layer.is_handler() {
        // SAFETY: the arguments are the kernel's, passed on.
        unsafe { call(layer, Signal::Bus, info, context) };
    }
}

/// Hands a foreign signal on to layer `at`.
///
/// # Safety
/// The arguments are those that the kernel passed to a handler of `signal`.
#[cold]
#[inline(never)]
pub(crate) unsafe fn forward(
    signal: Signal,
    info: *mut siginfo_t,
    context: *mut c_void,
    at: usize,
) {
    let layers = Layers::of(signal);
    // SAFETY: as the caller promises.
    let at = unsafe { at_most(layers, at, context) };
    let layer = layers.get(at);
    let beneath = match layer.claimed {
        true => beneath_registry_now(),
        false => layer,
    };
    // SAFETY: as the caller promises; the layer is a handler, installed with these flags.
    let raised = unsafe {
        if layer.is_handler() {
            let before = disposition(signal);
            call(layer, signal, info, context);
            stay_in_front(signal, &before, at);
        }
        (*info).si_code > 0
    };
    match beneath.action.sa_sigaction {
        // An action may have mended the cause.
        libc::SIG_DFL | libc::SIG_IGN if raised && layer.claimed && is_mended(info) => {}
        libc::SIG_DFL => default(signal, raised, info),
        // The kernel does not let a fault be ignored.
        libc::SIG_IGN if raised => default(signal, raised, info),
        _ => {}
    }
}

/// The layer to go on with: `at`, but never one that this very signal has been handed to already.
/// Two parties who both insist on being in front may each have saved the other.
///
/// The mark is in the context's `uc_link`, which the kernel clears for each signal and does not read:
/// it is there for as long as the signal's frame, whether a handler returns or jumps out of it.
///
/// # Safety
/// `context` is what the kernel passed to the handler.
unsafe fn at_most(layers: &'static Layers, at: usize, context: *mut c_void) -> usize {
    // SAFETY: the kernel passes a valid ucontext.
    let mark = unsafe { (*context.cast::<ucontext_t>()).uc_link };
    match layers.position(mark.cast()) {
        Some(reached) if at >= reached => layers.get(reached).below,
        _ => at,
    }
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

/// The disposition of a signal. Async-signal-safe, and it cannot fail: the arguments are valid.
pub(crate) fn disposition(signal: Signal) -> sigaction {
    // SAFETY: zeroes are a valid sigaction, which sigaction(2) overwrites.
    unsafe {
        let mut now: sigaction = mem::zeroed();
        libc::sigaction(signal.number(), ptr::null(), &raw mut now);
        now
    }
}

/// The layer beneath our handler, if the action is that.
pub(crate) fn layer_of(action: &sigaction) -> Option<usize> {
    FRONTS.iter().position(|front| *front as usize == action.sa_sigaction)
}

/// Puts our handler in front, with a layer beneath; returns what was there.
pub(crate) fn exchange_front(signal: Signal, layer: usize) -> sigaction {
    let [first, ..] = FRONTS;
    Layers::of(signal).set_last(layer);
    let ours = action(FRONTS.get(layer).copied().unwrap_or(first));
    // SAFETY: zeroes are a valid sigaction, which sigaction(2) overwrites; ours passes on what is not
    // ours. It cannot fail: the signal can be caught.
    unsafe {
        let mut before: sigaction = mem::zeroed();
        libc::sigaction(signal.number(), &raw const ours, &raw mut before);
        before
    }
}

/// Calls a handler as the kernel would: with its mask, and forgotten first if it asked for that.
///
/// # Safety
/// The layer is a handler; the other arguments are the kernel's.
unsafe fn call(layer: &Layer, signal: Signal, info: *mut siginfo_t, context: *mut c_void) {
    let action = &layer.action;
    // SAFETY: the kernel passes a valid ucontext.
    let (interrupted, marked) = unsafe {
        let context = context.cast::<ucontext_t>();
        let marked = (*context).uc_link;
        (*context).uc_link = ptr::from_ref(layer).cast_mut().cast();
        (bits(&(*context).uc_sigmask), marked)
    };
    let mut mask = interrupted | bits(&action.sa_mask);
    if action.sa_flags & libc::SA_NODEFER == 0 {
        mask |= bit(signal.number());
    }
    if action.sa_flags & libc::SA_RESETHAND != 0 {
        forget(signal, layer);
    }
    let ours = set_mask(mask);
    let handler = ptr::with_exposed_provenance::<()>(action.sa_sigaction);
    // SAFETY: the handler has the type that its flags say; the context is still valid.
    unsafe {
        if action.sa_flags & libc::SA_SIGINFO != 0 {
            mem::transmute::<*const (), Handler>(handler)(signal.number(), info, context);
        } else {
            mem::transmute::<*const (), extern "C" fn(c_int)>(handler)(signal.number());
        }
        (*context.cast::<ucontext_t>()).uc_link = marked;
    }
    set_mask(ours);
}

/// Lets the default be beneath instead of a handler that wanted to run once, as far as it would be
/// the kernel that calls it; whoever saved it and calls it does so again.
fn forget(signal: Signal, layer: &Layer) {
    let layers = Layers::of(signal);
    let Some(in_front) = layer_of(&disposition(signal)) else { return };
    if ptr::eq(layers.get(in_front), layer) {
        exchange_front(signal, 0);
    } else if layers.get(in_front).claimed {
        set_beneath_registry(0);
    }
}

/// Puts our handler back in front if the one of layer `at`, which was just called, has changed the
/// disposition from what it was `before`. Who was in front of us and still is may stay there.
fn stay_in_front(signal: Signal, before: &sigaction, at: usize) {
    let now = disposition(signal);
    if !same(&now, before) && layer_of(&now).is_none() {
        // Without room it stays what it was.
        let layer = Layers::of(signal).keep(&now, at, false).unwrap_or(at);
        exchange_front(signal, layer);
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
