//! Keeping signal handlers out while a chunk is owned.

/// All signals are blocked in this thread for as long as this lives. It holds the mask that was in
/// force, as the kernel has it: 64 bits, where the C library's set takes 128 bytes of stack.
pub(crate) struct SignalsBlocked(u64);

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        Self(set_mask(u64::MAX))
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        set_mask(self.0);
    }
}

/// rt_sigprocmask(2) SIG_SETMASK; returns the mask that was in force. It cannot fail: both masks
/// are valid memory of the size that the kernel expects.
fn set_mask(mask: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: the masks are valid.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            &raw mut before,
            size_of::<u64>(),
        );
    }
    before
}
