//! Being in front: the kernel must call our handler first, or whoever it calls must call ours.

use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::chain::{self, disposition, exchange_front, layer_of};
use crate::fault::handler;
use crate::fault::layers::{Layers, same};
use crate::fault::signals::Signal;
use crate::fault::violation;
use crate::lock::Mutex;
use crate::sys;
use nix::errno::Errno;

/// Held by who puts our handler in front, outside of it.
pub(super) static CHANGING: Mutex<()> = Mutex::new(());

/// Puts our handler in front for `signal`, for the first time.
pub(crate) fn install_handler(signal: Signal) -> Result<()> {
    match signal {
        Signal::Bus => install_above_registry()?,
        Signal::Segv => take(signal)?,
    }
    Layers::of(signal).set_installed();
    Ok(())
}

/// Puts our handler in front for SIGSEGV, unless it was already, for who wants touches of memory that it has
/// made inaccessible explained. If it cannot be, they are death without a line.
///
/// An allocator asks for this, with any lock held: so no lock is waited for, and it may be the next time
/// that it is done.
pub(crate) fn catch_segv() {
    if Layers::of(Signal::Segv).is_installed() {
        return;
    }
    let errno = Errno::last_raw();
    if let Some(_changing) = CHANGING.try_lock()
        && exchange_for(Signal::Segv).is_ok()
    {
        Layers::of(Signal::Segv).set_installed();
    }
    Errno::set_raw(errno);
}

/// For SIGBUS, with signal-hook-registry's handler beneath ours: claiming its slot now means that it
/// never installs itself over ours, and that whatever is registered through it, before or after, runs
/// for the foreign signals that we hand on.
fn install_above_registry() -> Result<()> {
    let _changing = CHANGING.lock();
    let error = |errno| Error::os(Operation::InstallHandler, errno);
    let layers = Layers::of(Signal::Bus);
    let bridge = handler::action(chain::beneath_registry);
    let before = disposition(Signal::Bus);
    let mut beneath = 0;
    // They are ours already if an earlier start failed half-way.
    if layer_of(&before).is_none() && before.sa_sigaction != bridge.sa_sigaction {
        let layer = layers.keep(&before, 0, false).ok_or(TOO_MANY)?;
        beneath = layer;
        chain::set_beneath_registry(layer);
    }
    exchange(&bridge).map_err(error)?;
    // SAFETY: the action does nothing.
    unsafe { signal_hook_registry::register_sigaction(libc::SIGBUS, |_| {}) }
        .map_err(|cause| error(Errno::from_raw(cause.raw_os_error().unwrap_or(0))))?;
    let registry = disposition(Signal::Bus);
    // If the slot was taken before, the registry's handler is what we found beneath.
    let layer = match registry.sa_sigaction == bridge.sa_sigaction {
        true => beneath,
        false => layers.keep(&registry, beneath, true).ok_or(TOO_MANY)?,
    };
    exchange_front(Signal::Bus, layer);
    Ok(())
}

const TOO_MANY: Error = Error::new(Operation::InstallHandler, ErrorKind::TooManyHandlers);

/// Gives SIGBUS the disposition `action`.
fn exchange(action: &libc::sigaction) -> nix::Result<libc::sigaction> {
    // SAFETY: the handlers of the new one pass on what is not ours.
    unsafe { sys::sigaction(libc::SIGBUS, Some(action)) }
}

/// Puts our handler in front of whatever is there, which is beneath from then on. What is there is
/// kept first, so that there is no moment in which a foreign fault would not find it.
fn take(signal: Signal) -> Result<()> {
    let _changing = CHANGING.lock();
    exchange_for(signal)
}

/// The same, with the lock held.
fn exchange_for(signal: Signal) -> Result<()> {
    let layers = Layers::of(signal);
    let mut found = disposition(signal);
    while layer_of(&found).is_none() {
        // Who had our handler beneath is above the layer that was beneath ours.
        let layer = layers.keep(&found, layers.last(), false).ok_or(TOO_MANY)?;
        let before = exchange_front(signal, layer);
        if same(&before, &found) {
            break;
        }
        // Somebody else was quicker: they are to lie beneath, then.
        found = before;
    }
    Ok(())
}

/// The signals that lacuna handles in this process.
pub(crate) fn signals() -> impl Iterator<Item = Signal> {
    [Signal::Bus, Signal::Segv].into_iter().filter(|signal| Layers::of(*signal).is_installed())
}

/// Whether the kernel calls lacuna's handler first when an arena is touched.
///
/// False if somebody has installed a handler over lacuna's, and before the first arena is reserved,
/// when there is none. A handler in front is no harm if it calls lacuna's for what it does not
/// know, or [`try_handle`](crate::try_handle) for everything: whether it does cannot be told from
/// here. If it does not, [`take_front`] helps.
///
/// ```
/// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
/// assert!(lacuna::is_in_front());
/// # Ok::<(), lacuna::Error>(())
/// ```
#[must_use]
pub fn is_in_front() -> bool {
    signals().next().is_some() && signals().all(|signal| layer_of(&disposition(signal)).is_some())
}

/// Puts lacuna's handler in front of one that somebody has installed over it.
///
/// What is found there is called from then on for the faults that are not lacuna's, as the kernel
/// would call it. It may call lacuna's handler in turn, which it found when it was installed: the
/// fault goes on to what lay beneath that, and never round in circles. If it puts back what it had
/// found, it is gone. Does nothing if lacuna is in front, and before the first arena is reserved.
///
/// Call it after everything that installs handlers for SIGBUS without regard for others: crash
/// reporters, language runtimes, profilers. [`ArenaBuilder::reserve`](crate::ArenaBuilder::reserve)
/// does by itself what can be wrong for nobody: it takes the front if SIGBUS was reset to its default
/// or set to be ignored.
///
/// # Errors
/// [`ErrorKind::TooManyHandlers`] if a dozen different handlers have been found in front.
///
/// ```
/// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
/// // Something that knows nothing of lacuna takes SIGBUS for itself.
/// unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
/// assert!(!lacuna::is_in_front());
/// lacuna::take_front()?;
/// assert!(lacuna::is_in_front());
/// unsafe { arena.as_ptr().write(1) };
/// # Ok::<(), lacuna::Error>(())
/// ```
pub fn take_front() -> Result<()> {
    signals().try_for_each(take)
}

/// Takes the front where a signal was reset or is ignored: then the next touch would kill, and nobody
/// is displaced. A handler is left where it is: it may call ours.
pub(crate) fn undo_reset() -> Result<()> {
    let is_reset = |signal: &Signal| {
        matches!(disposition(*signal).sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
    };
    match violation::is_dying() {
        // The signal was reset on purpose.
        true => Ok(()),
        false => signals().filter(is_reset).try_for_each(take),
    }
}

#[cfg(test)]
mod tests {
    use super::super::engine::start;
    use super::super::mapping::Mapping;
    use super::*;
    use crate::page::page_size;
    use core::ptr;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    /// Runs `body` in a process of its own, with our handler in front for SIGSEGV: this test binary,
    /// for the one test `name`, which comes here again.
    fn with_segv(name: &str, body: fn()) -> Output {
        const ROLE: &str = "LACUNA_TEST_SEGV";
        if std::env::var_os(ROLE).is_some() {
            start().unwrap();
            install_handler(Signal::Segv).unwrap();
            body();
            std::process::exit(0);
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", &format!("arena::front::tests::{name}"), "--nocapture"]);
        command.env(ROLE, "1").output().unwrap()
    }

    fn assert_ending(output: &Output, signal: i32, stderr: &str) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(signal), "{said}");
        assert!(said.contains(stderr), "{said}");
    }

    #[test]
    fn stack_overflow_is_still_reported() {
        #[expect(unconditional_recursion, reason = "the stack is to overflow")]
        fn recurse(depth: usize) -> usize {
            core::hint::black_box(recurse(core::hint::black_box(depth) + 1)) + 1
        }
        let output = with_segv("stack_overflow_is_still_reported", || {
            std::thread::spawn(|| recurse(0)).join().unwrap();
        });
        assert_ending(&output, libc::SIGABRT, "has overflowed its stack");
    }

    #[test]
    fn a_wild_pointer_still_kills() {
        let output = with_segv("a_wild_pointer_still_kills", || {
            // SAFETY: it is not, and the process dies of it.
            unsafe { ptr::without_provenance::<u8>(0x1000).read_volatile() };
        });
        assert_ending(&output, libc::SIGSEGV, "");
    }

    #[test]
    fn a_page_without_access_rights_still_kills() {
        let output = with_segv("a_page_without_access_rights_still_kills", || {
            let mapping = Mapping::zeroes(page_size()).unwrap();
            // SAFETY: the page is the mapping's; touching it then is the point.
            unsafe {
                libc::mprotect(mapping.base().as_ptr().cast(), page_size(), libc::PROT_NONE);
                mapping.base().as_ptr().cast::<u8>().read_volatile();
            }
        });
        assert_ending(&output, libc::SIGSEGV, "");
    }
}
