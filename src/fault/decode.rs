//! What the kernel tells about a fault: the address, and whether it was a write.

use super::signals::Signal;
use libc::{c_int, c_void, siginfo_t};

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

/// Whether the instruction that faulted wanted to write.
///
/// # Safety
/// `context` is what the kernel passed to a handler with SA_SIGINFO.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn access(context: *const c_void) -> Access {
    /// Bit 1 of the page fault error code: the access was a write.
    const WRITE: i64 = 1 << 1;
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext; REG_ERR is one of its registers.
    let error = unsafe { (*context).uc_mcontext.gregs.get(libc::REG_ERR as usize).copied() };
    match error {
        Some(error) if error & WRITE == 0 => Access::Read,
        _ => Access::Write,
    }
}

/// Whether the instruction that faulted wanted to write.
///
/// # Safety
/// `context` is what the kernel passed to a handler with SA_SIGINFO.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn access(context: *const c_void) -> Access {
    /// `struct _aarch64_ctx` of asm/sigcontext.h, which heads each record.
    #[repr(C)]
    struct Header {
        magic: u32,
        size: u32,
    }
    const ESR_MAGIC: u32 = 0x4553_5201;
    /// Bit 6 of a data abort's syndrome, "write not read".
    const WRITE: u64 = 1 << 6;
    /// `__reserved` of `struct sigcontext`: the records, at the end of the machine context and
    /// aligned to 16.
    const RECORDS: usize = 4096;
    const OFFSET: usize = size_of::<libc::mcontext_t>() - RECORDS;

    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid ucontext; its records lie within `__reserved`, each headed
    // by its size, and end with one of size 0.
    unsafe {
        let records = (&raw const (*context).uc_mcontext).cast::<u8>().add(OFFSET);
        let mut at = 0;
        while at + size_of::<Header>() <= RECORDS {
            let header = records.add(at).cast::<Header>();
            match ((*header).magic, (*header).size as usize) {
                (ESR_MAGIC, _) => {
                    let syndrome = header.add(1).cast::<u64>().read_unaligned();
                    return if syndrome & WRITE == 0 { Access::Read } else { Access::Write };
                }
                (_, 0) => break,
                (_, size) => at += size,
            }
        }
    }
    Access::Write
}

/// Whether the instruction that faulted wanted to write: not known here, and a page that can be
/// written serves reads too.
///
/// # Safety
/// `context` is what the kernel passed to a handler with SA_SIGINFO.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) unsafe fn access(_context: *const c_void) -> Access {
    Access::Write
}
