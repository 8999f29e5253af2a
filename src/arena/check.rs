//! Whether a thread can touch arenas and live: what the kernel needs to run a handler.

use super::front::signals;
use crate::atomic::Ordering;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::REGISTRY;
use crate::fault::chain::{disposition, layer_of};
use crate::fault::registry::Lookup;
use crate::fault::signals::{Signal, bit, mask};
use crate::fork::current_thread;
use core::mem;
use core::ptr;

/// Stack that the handler takes on top of the kernel's frame; `tests/stack.rs` measures it.
const HANDLER_STACK: usize = if cfg!(debug_assertions) { 4 << 10 } else { 512 };

/// Tells beforehand whether the calling thread can touch arenas: where it cannot, the kernel would
/// kill the process at the first fault, without any message.
///
/// It can if the signals of faults are not blocked, its alternate signal stack, if there is any, is
/// large enough and no part of an arena, as the stack it runs on may only be if there is one, and
/// nobody has displaced lacuna's handler. Displacement is looked at last: a program whose handler
/// calls [`try_handle`](crate::try_handle), or lacuna's own, may take
/// [`ErrorKind::Displaced`] for success. Before the first arena is reserved there is no handler, and
/// only the thread is checked.
///
/// What is checked is the moment: call it where a thread starts, and again where signal masks change.
///
/// # Errors
/// [`ErrorKind::SignalBlocked`], [`ErrorKind::AlternateStackTooSmall`],
/// [`ErrorKind::AlternateStackInArena`], [`ErrorKind::NoAlternateStack`] or [`ErrorKind::Displaced`];
/// each says what to do.
///
/// ```
/// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
/// std::thread::spawn(|| lacuna::check_thread()).join().unwrap()?;
/// # Ok::<(), lacuna::Error>(())
/// ```
pub fn check_thread() -> Result<()> {
    check_mask()?;
    check_stack()?;
    match signals().find(|signal| layer_of(&disposition(*signal)).is_none()) {
        Some(signal) => Err(error(ErrorKind::Displaced).named(signal.name())),
        None => Ok(()),
    }
}

const fn error(kind: ErrorKind) -> Error {
    Error::new(Operation::CheckThread, kind)
}

/// SIGBUS is looked at before any arena exists.
fn check_mask() -> Result<()> {
    let mask = mask();
    let is_blocked = |signal: &Signal| mask & bit(signal.number()) != 0;
    let expected = signals().next().is_none().then_some(Signal::Bus);
    match expected.into_iter().chain(signals()).find(is_blocked) {
        Some(signal) => Err(error(ErrorKind::SignalBlocked).named(signal.name())),
        None => Ok(()),
    }
}

fn check_stack() -> Result<()> {
    let here = ptr::from_ref(&core::hint::black_box(0u8)).addr();
    // SAFETY: zeroes are a valid stack_t, which sigaltstack overwrites; nothing is changed.
    let stack = unsafe {
        let mut stack: libc::stack_t = mem::zeroed();
        libc::sigaltstack(ptr::null(), &raw mut stack);
        stack
    };
    if stack.ss_flags & libc::SS_DISABLE != 0 {
        return match is_in_arena(here) {
            true => Err(error(ErrorKind::NoAlternateStack)),
            false => Ok(()),
        };
    }
    let bottom = stack.ss_sp.addr();
    if is_in_arena(bottom) {
        return Err(error(ErrorKind::AlternateStackInArena));
    }
    // A handler that runs on it already has what is left.
    let room = match stack.ss_flags & libc::SS_ONSTACK != 0 {
        true => here.saturating_sub(bottom),
        false => stack.ss_size,
    };
    match room < frame().saturating_add(HANDLER_STACK) {
        true => Err(error(ErrorKind::AlternateStackTooSmall).value(room)),
        false => Ok(()),
    }
}

/// Bytes that the kernel puts on the stack to call a handler: the processor's registers.
fn frame() -> usize {
    // SAFETY: getauxval has no preconditions; it returns 0 for what the kernel does not tell.
    let told = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
    told.max(libc::MINSIGSTKSZ)
}

/// Whether an address lies in memory that raises signals: in an arena that is no heap's.
fn is_in_arena(address: usize) -> bool {
    match REGISTRY.pin(address, current_thread) {
        // Relaxed: said when the heap was made, before anybody had a block of it.
        Lookup::Found(region) => region.handed_over.load(Ordering::Relaxed) == 0,
        Lookup::Nothing => false,
        // It is just ceasing to be one.
        Lookup::Retry => true,
    }
}
