//! The system calls that change or ask about mappings.

use super::seam::{self, Call};
use core::ffi::c_int;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags};

/// mmap(2) of anonymous memory, or of the file `from` (a descriptor and an offset).
///
/// # Safety
/// With `MAP_FIXED`, what is mapped at `at` is the caller's to replace.
pub(crate) unsafe fn map(
    at: *mut u8,
    len: usize,
    protection: ProtFlags,
    flags: MapFlags,
    from: Option<(c_int, i64)>,
) -> Result<*mut u8, Errno> {
    seam::pass(Call::Map)?;
    let flags = if from.is_none() { flags | MapFlags::MAP_ANONYMOUS } else { flags };
    let (fd, offset) = from.unwrap_or((-1, 0));
    // SAFETY: as the caller promises; else a new mapping touches nothing that exists.
    let mapped = unsafe { libc::mmap(at.cast(), len, protection.bits(), flags.bits(), fd, offset) };
    if mapped == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(mapped.cast()) }
}

/// munmap(2).
///
/// # Safety
/// The range is the caller's, and not used any more.
pub(crate) unsafe fn unmap(start: *mut u8, len: usize) -> Result<(), Errno> {
    seam::pass(Call::Unmap)?;
    // SAFETY: as the caller promises.
    Errno::result(unsafe { libc::munmap(start.cast(), len) }).map(drop)
}

/// mprotect(2).
///
/// # Safety
/// The range is the caller's; whoever uses it is prepared for the protection.
#[inline(always)]
pub(crate) unsafe fn protect(
    start: *mut u8,
    len: usize,
    protection: ProtFlags,
) -> Result<(), Errno> {
    seam::pass(Call::Protect)?;
    // SAFETY: as the caller promises.
    Errno::result(unsafe { libc::mprotect(start.cast(), len, protection.bits()) }).map(drop)
}

/// munlock(2), which needs no privilege.
///
/// # Safety
/// The range is the caller's to have unlocked.
#[inline(always)]
pub(crate) unsafe fn unlock(start: *mut u8, len: usize) -> Result<(), Errno> {
    seam::pass(Call::Unlock)?;
    // SAFETY: as the caller promises; unlocking changes no content.
    Errno::result(unsafe { libc::munlock(start.cast(), len) }).map(drop)
}

/// Makes pages inaccessible without splitting a mapping, and drops what they hold; since Linux 6.13.
pub(crate) const MADV_GUARD_INSTALL: c_int = 102;
/// Takes that back.
pub(crate) const MADV_GUARD_REMOVE: c_int = 103;

/// madvise(2).
///
/// # Safety
/// If the advice changes content, the range is the caller's to change.
#[inline(always)]
pub(crate) unsafe fn advise(start: *mut u8, len: usize, advice: c_int) -> Result<(), Errno> {
    seam::pass(match advice {
        libc::MADV_DONTNEED | libc::MADV_REMOVE => Call::Discard,
        libc::MADV_POPULATE_READ => Call::PopulateRead,
        libc::MADV_POPULATE_WRITE => Call::PopulateWrite,
        libc::MADV_WIPEONFORK => Call::WipeOnFork,
        MADV_GUARD_INSTALL => Call::Guard,
        MADV_GUARD_REMOVE => Call::Unguard,
        _ => Call::Advise,
    })?;
    // SAFETY: as the caller promises.
    Errno::result(unsafe { libc::madvise(start.cast(), len, advice) }).map(drop)
}

/// mremap(2) to the fixed address `to`.
///
/// # Safety
/// Both ranges are the caller's, who goes on with the target.
pub(crate) unsafe fn remap(
    from: *mut u8,
    len: usize,
    to: *mut u8,
    new_len: usize,
) -> Result<(), Errno> {
    seam::pass(Call::Remap)?;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: as the caller promises.
    let moved =
        unsafe { libc::mremap(from.cast(), len, new_len, flags, to.cast::<libc::c_void>()) };
    if moved == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}

/// process_vm_readv(2) of this process: copies `len` bytes, which other threads may be writing, or which
/// may not be there (EFAULT, or a short count). Tells how many came.
///
/// # Safety
/// `to` is valid for writes of `len` bytes by the kernel.
#[inline(always)]
pub(crate) unsafe fn copy_out(to: *mut u8, from: usize, len: usize) -> Result<usize, Errno> {
    seam::pass(Call::CopyOut)?;
    let local = libc::iovec { iov_base: to.cast(), iov_len: len };
    let remote =
        libc::iovec { iov_base: core::ptr::with_exposed_provenance_mut(from), iov_len: len };
    // SAFETY: the kernel looks before it reads; the rest is as the caller promises.
    let copied = unsafe {
        let process = libc::getpid();
        libc::process_vm_readv(process, &raw const local, 1, &raw const remote, 1, 0)
    };
    Ok(Errno::result(copied)? as usize)
}

/// Whether the byte at `address`, and seven more, can be read: rt_sigprocmask(2), told to do what there is
/// not, reads its argument before it says so.
pub(crate) fn is_readable(address: usize) -> bool {
    const NO_SUCH: c_int = -1;
    let set: *const u64 = core::ptr::with_exposed_provenance(address);
    let old: *mut u64 = core::ptr::null_mut();
    // SAFETY: the kernel looks before it reads, and changes nothing.
    let result =
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, NO_SUCH, set, old, size_of::<u64>()) };
    Errno::result(result) == Err(Errno::EINVAL)
}

/// mincore(2) of the page at `start`: whether it is there.
///
/// # Safety
/// `start` is the address of a page of a mapping.
pub(crate) unsafe fn resident(start: *mut u8) -> Result<bool, Errno> {
    seam::pass(Call::Mincore)?;
    let mut state = 0u8;
    // SAFETY: the state of a page is one byte.
    Errno::result(unsafe { libc::mincore(start.cast(), 1, &raw mut state) })?;
    Ok(state & 1 != 0)
}
