//! What the kernel tells about a fault: the address, and whether it was a write.

use super::signals::Signal;
use libc::{c_int, c_void, siginfo_t};
use machine::{WRITE, cause, is_fetch_cause};

/// How memory was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// A load, or an instruction fetch.
    Read,
    /// A store, or an instruction that reads and writes.
    Write,
}

/// The faulting address, if the signal is a fault that a backend of ours provokes: what kill(2)
/// sends, memory errors, and touches of what is not mapped at all, are not.
///
/// # Safety
/// `info` is what the kernel passed to a handler of `signal`.
pub(crate) unsafe fn fault_address(signal: Signal, info: *const siginfo_t) -> Option<usize> {
    /// `SEGV_ACCERR` of siginfo.h: the page is mapped, but does not allow this access.
    const SEGV_ACCERR: c_int = linux_raw_sys::general::SEGV_ACCERR as c_int;
    let code = match signal {
        Signal::Bus => libc::BUS_ADRERR,
        Signal::Segv => SEGV_ACCERR,
    };
    // SAFETY: the kernel passes a valid siginfo; with either code it carries an address.
    unsafe { ((*info).si_code == code).then(|| (*info).si_addr().addr()) }
}

/// Whether the instruction that faulted wanted to write. Where that is not known, yes: a page that can
/// be written serves reads too.
///
/// # Safety
/// `context` is what the kernel passed to a handler with SA_SIGINFO.
pub(crate) unsafe fn access(context: *const c_void) -> Access {
    // SAFETY: as the caller promises.
    match unsafe { cause(context) } {
        Some(cause) if cause & WRITE == 0 => Access::Read,
        _ => Access::Write,
    }
}

/// Whether the fault was met in fetching the instruction itself. No page that lacuna makes accessible
/// is executable.
///
/// # Safety
/// `context` is what the kernel passed to a handler with SA_SIGINFO.
pub(crate) unsafe fn is_fetch(context: *const c_void) -> bool {
    // SAFETY: as the caller promises.
    unsafe { cause(context) }.is_some_and(is_fetch_cause)
}

/// Whether this machine tells fetches apart.
pub(crate) const TELLS_FETCHES: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

#[cfg(target_arch = "x86_64")]
mod machine {
    use libc::c_void;

    /// Bit 1 of the page fault error code: the access was a write.
    pub(super) const WRITE: u64 = 1 << 1;
    /// Bit 4 of the page fault error code: an instruction fetch.
    const FETCH: u64 = 1 << 4;

    pub(super) fn is_fetch_cause(cause: u64) -> bool {
        cause & FETCH != 0
    }

    /// The error code of the page fault.
    ///
    /// # Safety
    /// `context` is what the kernel passed to a handler with SA_SIGINFO.
    pub(super) unsafe fn cause(context: *const c_void) -> Option<u64> {
        let context = context.cast::<libc::ucontext_t>();
        // SAFETY: the kernel passes a valid ucontext; REG_ERR is one of its registers.
        let error = unsafe { (*context).uc_mcontext.gregs.get(libc::REG_ERR as usize).copied() };
        error.map(i64::cast_unsigned)
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use libc::c_void;

    /// Bit 6 of a data abort's syndrome, "write not read".
    pub(super) const WRITE: u64 = 1 << 6;

    /// An instruction abort, by the syndrome's exception class, bits 26 to 31.
    pub(super) fn is_fetch_cause(cause: u64) -> bool {
        matches!(cause >> 26 & 0x3f, 0x20 | 0x21)
    }

    /// `struct _aarch64_ctx` of asm/sigcontext.h, which heads each record.
    #[repr(C)]
    struct Header {
        magic: u32,
        size: u32,
    }
    const ESR_MAGIC: u32 = 0x4553_5201;
    /// `__reserved` of `struct sigcontext`: the records, at the end of the machine context and
    /// aligned to 16.
    const RECORDS: usize = 4096;
    const OFFSET: usize = size_of::<libc::mcontext_t>() - RECORDS;

    /// The exception's syndrome, ESR.
    ///
    /// # Safety
    /// `context` is what the kernel passed to a handler with SA_SIGINFO.
    pub(super) unsafe fn cause(context: *const c_void) -> Option<u64> {
        let context = context.cast::<libc::ucontext_t>();
        // SAFETY: the kernel passes a valid ucontext; its records lie within `__reserved`, each headed
        // by its size, and end with one of size 0.
        unsafe {
            let records = (&raw const (*context).uc_mcontext).cast::<u8>().add(OFFSET);
            let mut at = 0usize;
            while at.wrapping_add(size_of::<Header>()) <= RECORDS {
                let header = records.add(at).cast::<Header>();
                match ((*header).magic, (*header).size as usize) {
                    (ESR_MAGIC, _) => return Some(header.add(1).cast::<u64>().read_unaligned()),
                    (_, 0) => break,
                    (_, size) => at = at.wrapping_add(size),
                }
            }
        }
        None
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod machine {
    use libc::c_void;

    pub(super) const WRITE: u64 = 0;

    pub(super) fn is_fetch_cause(_: u64) -> bool {
        false
    }

    /// # Safety
    /// None.
    pub(super) unsafe fn cause(_: *const c_void) -> Option<u64> {
        None
    }
}
