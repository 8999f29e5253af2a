//! The system calls that lacuna's life hangs on, each in one place, and each behind a [`seam`]
//! through which tests make it fail.
//!
//! All of them are one system call, allocate nothing and cannot panic, so they work inside a signal
//! handler and inside an allocator. They set errno as the C library's do.

mod file;
mod memory;
#[cfg_attr(not(lacuna_seam), allow(unreachable_pub, reason = "public for tests with the seam"))]
pub mod seam;

pub(crate) use file::{
    duplicate, file_len, file_system, lock, memfd, open_flags, punch, seal, set_file_len, status,
    sync,
};
pub(crate) use memory::{
    MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, advise, copy_out, is_readable, map, protect, remap,
    resident, unlock, unmap,
};

use core::ffi::{CStr, c_int, c_long, c_ulong};
use nix::errno::Errno;
use seam::Call;
use std::os::fd::{FromRawFd, OwnedFd};

/// userfaultfd(2), with its flags.
pub(crate) fn userfaultfd(flags: c_int) -> Result<c_int, Errno> {
    seam::pass(Call::Userfaultfd)?;
    // SAFETY: userfaultfd(2) takes one integer and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, c_long::from(flags)) };
    Ok(Errno::result(fd)? as c_int)
}

/// ioctl(2), by syscall(2) itself: the C library's takes a variable argument list, and a hundred bytes
/// of stack, which is small in a signal handler.
///
/// # Safety
/// The argument is what `request` takes, and the caller answers for what that does.
#[inline(always)]
pub(crate) unsafe fn ioctl<T>(
    call: Call,
    fd: c_int,
    request: c_ulong,
    argument: *mut T,
) -> Result<c_int, Errno> {
    seam::pass(call)?;
    // SAFETY: as the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) };
    Errno::result(result as c_int)
}

/// Lets other threads run: nanosleep(2), which, unlike sched_yield(2), also lets those run whose priority is
/// lower. Whether it sleeps for so long is nobody's concern, so it has no seam.
#[inline(never)]
pub(crate) fn pause(nanoseconds: i64) {
    let time = libc::timespec { tv_sec: 0, tv_nsec: nanoseconds };
    // SAFETY: the time is valid; the remainder is not asked for.
    unsafe { libc::nanosleep(&raw const time, core::ptr::null_mut()) };
}

/// openat(2) of a file of the system's, close-on-exec; by syscall(2), as above.
pub(crate) fn open(call: Call, path: &CStr, flags: c_int) -> Result<OwnedFd, Errno> {
    seam::pass(call)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags) };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

/// pread(2).
///
/// # Safety
/// `to` is valid for writes of `len` bytes.
#[inline(always)]
pub(crate) unsafe fn read_at(
    call: Call,
    fd: c_int,
    to: *mut u8,
    len: usize,
    offset: usize,
) -> Result<usize, Errno> {
    seam::pass(call)?;
    // SAFETY: as the caller promises.
    let read = unsafe { libc::pread(fd, to.cast(), len, offset as libc::off_t) };
    Ok(Errno::result(read)? as usize)
}

/// pwrite(2) from memory that may turn out not to be readable, which is EFAULT or a short count.
///
/// # Safety
/// The caller answers for what writing to the file does.
#[inline(always)]
pub(crate) unsafe fn write_at(
    call: Call,
    fd: c_int,
    from: *const u8,
    len: usize,
    offset: usize,
) -> Result<usize, Errno> {
    seam::pass(call)?;
    // SAFETY: the kernel checks what it reads; the rest is as the caller promises.
    let written = unsafe { libc::pwrite(fd, from.cast(), len, offset as libc::off_t) };
    Ok(Errno::result(written)? as usize)
}

/// The first two numbers of the kernel's release, from uname(2).
pub(crate) fn kernel_release() -> Option<(u32, u32)> {
    // SAFETY: zeroes are a valid utsname, which uname(2) overwrites.
    let name = unsafe {
        let mut name: libc::utsname = core::mem::zeroed();
        Errno::result(libc::uname(&raw mut name)).ok()?;
        name
    };
    let mut numbers = name.release.split(|byte| !(*byte as u8).is_ascii_digit()).map(|digits| {
        digits.iter().fold(0u32, |number, digit| {
            let digit = (*digit as u8).wrapping_sub(b'0');
            number.wrapping_mul(10).wrapping_add(u32::from(digit))
        })
    });
    Some((numbers.next()?, numbers.next()?))
}

/// sigaction(2): gives `signal` the disposition `new`, if any, and tells the one before.
///
/// # Safety
/// Whoever relied on the disposition before must be prepared for the new one.
pub(crate) unsafe fn sigaction(
    signal: c_int,
    new: Option<&libc::sigaction>,
) -> Result<libc::sigaction, Errno> {
    seam::pass(Call::Sigaction)?;
    // SAFETY: zeroes are a valid sigaction, which sigaction(2) overwrites.
    unsafe {
        let mut before = core::mem::zeroed();
        let new = new.map_or(core::ptr::null(), core::ptr::from_ref);
        Errno::result(libc::sigaction(signal, new, &raw mut before))?;
        Ok(before)
    }
}

/// pthread_atfork(3).
pub(crate) fn at_fork(
    before: extern "C" fn(),
    in_parent: extern "C" fn(),
    in_child: extern "C" fn(),
) -> Result<(), Errno> {
    seam::pass(Call::AtFork)?;
    // SAFETY: the hooks are functions of this library, and there until the process ends.
    match unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) } {
        0 => Ok(()),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// pthread_key_create(3).
pub(crate) fn thread_key(
    at_end: unsafe extern "C" fn(*mut libc::c_void),
) -> Result<libc::pthread_key_t, Errno> {
    seam::pass(Call::ThreadKey)?;
    let mut key = 0;
    // SAFETY: the destructor is a function of this library, and there until the process ends.
    match unsafe { libc::pthread_key_create(&raw mut key, Some(at_end)) } {
        0 => Ok(key),
        errno => Err(Errno::from_raw(errno)),
    }
}
