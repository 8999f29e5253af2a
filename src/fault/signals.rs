//! The signals that faults raise, and signal masks as the kernel has them: 64 bits, where the C
//! library's sets take 128 bytes of stack.

/// A signal that the kernel raises for a page which lacuna has to make accessible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// SIGBUS: userfaultfd's, for a missing page.
    Bus,
    /// SIGSEGV: for a page without access rights.
    Segv,
}

/// What the processor raises: never blocked in our handler, where it would be death.
pub(crate) const RAISED: [libc::c_int; 5] =
    [libc::SIGBUS, libc::SIGSEGV, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP];

impl Signal {
    /// The signal of this number, if it is one of ours.
    pub(crate) fn of(number: libc::c_int) -> Option<Self> {
        match number {
            libc::SIGBUS => Some(Self::Bus),
            libc::SIGSEGV => Some(Self::Segv),
            _ => None,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bus => "SIGBUS",
            Self::Segv => "SIGSEGV",
        }
    }

    /// What the kernel calls it.
    pub(crate) const fn number(self) -> libc::c_int {
        match self {
            Self::Bus => libc::SIGBUS,
            Self::Segv => libc::SIGSEGV,
        }
    }
}

/// All signals are blocked in this thread for as long as this lives: no signal handler touches a chunk
/// that this thread owns, and waits for its own thread. Our own handler needs none, see its mask.
pub(crate) struct SignalsBlocked(u64);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        Self(set_mask(u64::MAX))
    }

    /// As our handler's mask has it: what the processor raises stays as it is.
    pub(crate) fn as_in_handler() -> Self {
        let raised = RAISED.iter().fold(0, |mask, signal| mask | bit(*signal));
        Self(change_mask(libc::SIG_BLOCK, !raised))
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        set_mask(self.0);
    }
}

/// The bits of a C library's set that the kernel knows.
pub(crate) fn bits(set: &libc::sigset_t) -> u64 {
    // SAFETY: a set is at least as large as the kernel's, which comes first, and aligned to it.
    unsafe { core::ptr::from_ref(set).cast::<u64>().read() }
}

/// The bit of a signal.
pub(crate) fn bit(signal: libc::c_int) -> u64 {
    1u64.checked_shl(signal.unsigned_abs().wrapping_sub(1)).unwrap_or(0)
}

/// Gives the thread this mask; returns the one that was in force.
pub(crate) fn set_mask(mask: u64) -> u64 {
    change_mask(libc::SIG_SETMASK, mask)
}

/// The thread's mask.
pub(crate) fn mask() -> u64 {
    change_mask(libc::SIG_BLOCK, 0)
}

/// rt_sigprocmask(2); returns the mask that was in force. It cannot fail: both masks are valid memory
/// of the size that the kernel expects.
fn change_mask(how: libc::c_int, mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: the masks are valid.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            how,
            &raw const mask,
            &raw mut before,
            size_of::<u64>(),
        );
    }
    before
}
