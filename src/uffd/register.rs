//! The operations on a range that happen whole or fail: registering it, protecting it, waking
//! whoever waits for it.

use super::{Ioctls, RegisterMode, Uffd, WriteProtectMode, abi};
use crate::error::{Error, Operation, Result};
use core::ffi::c_int;
use nix::errno::Errno;
use std::os::fd::AsFd;

/// The error of `operation` on the `len` bytes from `start`.
fn failed(operation: Operation, errno: Errno, range: abi::uffdio_range) -> Error {
    let (start, len) = (range.start as usize, range.len as usize);
    Error::os(operation, errno).range(start, start.wrapping_add(len))
}

/// The argument of a request on the `len` bytes from `start`.
pub(super) fn range(start: *mut u8, len: usize) -> abi::uffdio_range {
    abi::uffdio_range { start: start.expose_provenance() as u64, len: len as u64 }
}

impl<F: AsFd> Uffd<F> {
    /// `UFFDIO_REGISTER`: from now on, the faults that `mode` names in the `len` bytes from `start`
    /// go to this userfaultfd. Since Linux 4.3.
    ///
    /// Returns the operations that work on the range. Pages that are present stay as they are.
    /// Registering a range again replaces its mode. The range may span several mappings and the
    /// gaps between them.
    ///
    /// `start` and `len` are multiples of the page size, on hugetlbfs of the huge page size. Private
    /// anonymous memory, shared memory (memfd, tmpfs) and hugetlbfs can be registered; on private
    /// mappings of a memfd, [`RegisterMode::MISSING`] means a page that neither the mapping nor the
    /// file has.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_REGISTER.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the range is empty or unaligned, has no mapping or an incompatible one (of an
    ///   ordinary file, say); or `mode` is empty or unsupported.
    /// - `EBUSY`: another userfaultfd has part of the range.
    /// - `EPERM`: the mapping is shared and its file is not open for writing.
    /// - `ENOMEM`: the process that opened the userfaultfd is gone, or the kernel is out of memory
    ///   or mappings (`vm.max_map_count`).
    ///
    /// # Safety
    ///
    /// The memory must be the caller's to govern. A missing page that would have read as zero may
    /// now be given other contents; a touch raises SIGBUS or waits until somebody resolves it;
    /// and a narrower mode, or closing the userfaultfd, which safe code may do, lets pages that were
    /// tracked until now appear by themselves, as zeros. Whoever uses this memory must be prepared
    /// for that.
    #[doc(alias = "UFFDIO_REGISTER")]
    pub unsafe fn register(
        &self,
        start: *mut u8,
        len: usize,
        mode: RegisterMode,
    ) -> Result<Ioctls> {
        let mut argument =
            abi::uffdio_register { range: range(start, len), mode: mode.bits(), ioctls: 0 };
        // SAFETY: a userfaultfd, and the argument of this request; what it does to the range is
        // what the caller answers for.
        match unsafe { abi::register(self.raw(), &raw mut argument) } {
            Ok(_) => Ok(Ioctls::from_bits_retain(argument.ioctls)),
            Err(errno) => Err(failed(Operation::Register, errno, argument.range)),
        }
    }

    /// `UFFDIO_UNREGISTER`: the `len` bytes from `start` are ordinary memory again. Since Linux 4.3.
    ///
    /// Threads that wait for a page of the range are woken if it was registered with
    /// [`RegisterMode::MISSING`]; otherwise [`Uffd::wake`] them afterwards. Pages that are missing read
    /// as zero when they are touched next; write protection and poison are lifted. Parts that are not
    /// registered are passed over.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_UNREGISTER.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the range is empty or unaligned, has no mapping or an incompatible one; or another
    ///   userfaultfd has part of it (older kernels unregister it there).
    /// - `ENOMEM`: as for [`Uffd::register`].
    ///
    /// # Safety
    ///
    /// Whoever uses this memory must be prepared to find zeros where a page is missing.
    #[doc(alias = "UFFDIO_UNREGISTER")]
    pub unsafe fn unregister(&self, start: *mut u8, len: usize) -> Result<()> {
        let mut argument = range(start, len);
        // SAFETY: as in `register`.
        let outcome = unsafe { abi::unregister(self.raw(), &raw mut argument) };
        whole(Operation::Unregister, argument, outcome)
    }

    /// `UFFDIO_WRITEPROTECT`: protects the `len` bytes from `start` against writing, or lifts the
    /// protection. Since Linux 5.7.
    ///
    /// The range must be registered with [`RegisterMode::WP`]. A write to a protected page is a
    /// fault, which is resolved by lifting the protection. Pages of anonymous memory that are
    /// missing are protected too if the userfaultfd has
    /// [`Features::WP_UNPOPULATED`](super::Features::WP_UNPOPULATED), otherwise passed over.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_WRITEPROTECT.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the range is empty or unaligned, or `mode` is unsupported, or has both bits.
    /// - `ENOENT`: part of the range is not mapped or not registered with [`RegisterMode::WP`]; up to
    ///   Linux 6.1, also if the range spans several mappings.
    /// - `EAGAIN`: the memory map is changing (an event is waiting to be read): try again.
    /// - `EFAULT`: the kernel failed underway.
    /// - `ESRCH`: the process that opened the userfaultfd is gone.
    ///
    /// # Safety
    ///
    /// Whoever writes this memory must be prepared for the fault: a SIGBUS, or waiting. Whoever
    /// relies on being told about writes must be prepared not to be.
    #[doc(alias = "UFFDIO_WRITEPROTECT")]
    pub unsafe fn write_protect(
        &self,
        start: *mut u8,
        len: usize,
        mode: WriteProtectMode,
    ) -> Result<()> {
        let mut argument = abi::uffdio_writeprotect { range: range(start, len), mode: mode.bits() };
        // SAFETY: as in `register`.
        let outcome = unsafe { abi::write_protect(self.raw(), &raw mut argument) };
        whole(Operation::WriteProtect, argument.range, outcome)
    }

    /// `UFFDIO_WAKE`: wakes the threads that wait for a page among the `len` bytes from `start`.
    /// Since Linux 4.3.
    ///
    /// For operations that were told not to (`DONTWAKE`). A thread that is woken touches its page
    /// again; if that is still a fault, it waits again. In SIGBUS mode nobody ever waits.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_WAKE.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the range is empty, unaligned or outside the address space. It need not be
    /// mapped.
    #[doc(alias = "UFFDIO_WAKE")]
    pub fn wake(&self, start: *mut u8, len: usize) -> Result<()> {
        let mut argument = range(start, len);
        // SAFETY: a userfaultfd, and the argument of this request, which changes no memory.
        let outcome = unsafe { abi::wake(self.raw(), &raw mut argument) };
        whole(Operation::Wake, argument, outcome)
    }
}

fn whole(
    operation: Operation,
    range: abi::uffdio_range,
    outcome: nix::Result<c_int>,
) -> Result<()> {
    match outcome {
        Ok(_) => Ok(()),
        Err(errno) => Err(failed(operation, errno, range)),
    }
}
