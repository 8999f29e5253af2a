//! The system calls that images need.

use super::seam::{self, Call};
use core::ffi::c_int;
use core::mem;
use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd};

/// memfd_create(2).
pub(crate) fn memory_file() -> Result<OwnedFd, Errno> {
    seam::pass(Call::MemoryFile)?;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"lacuna".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fcntl(2), F_DUPFD_CLOEXEC.
pub(crate) fn duplicate(fd: c_int) -> Result<OwnedFd, Errno> {
    seam::pass(Call::Duplicate)?;
    // SAFETY: it touches no memory of ours.
    let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: as above.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fcntl(2), F_GETFL: how a file was opened.
pub(crate) fn open_flags(fd: c_int) -> Result<c_int, Errno> {
    seam::pass(Call::OpenFlags)?;
    // SAFETY: it touches no memory of ours.
    Errno::result(unsafe { libc::fcntl(fd, libc::F_GETFL) })
}

/// fcntl(2), F_OFD_SETLK: takes a lock of the given kind on one byte, or gives it back (F_UNLCK).
pub(crate) fn lock(fd: c_int, kind: c_int, byte: i64) -> Result<(), Errno> {
    seam::pass(Call::LockFile)?;
    // SAFETY: zeroes are a valid request, which the kernel only reads.
    let result = unsafe {
        let mut request: libc::flock = mem::zeroed();
        request.l_type = kind as _;
        request.l_whence = libc::SEEK_SET as _;
        request.l_start = byte;
        request.l_len = 1;
        libc::fcntl(fd, libc::F_OFD_SETLK, &raw const request)
    };
    Errno::result(result).map(drop)
}

/// fstat(2).
pub(crate) fn status(fd: c_int) -> Result<libc::stat, Errno> {
    seam::pass(Call::FileStatus)?;
    // SAFETY: zeroes are a valid stat, which the kernel overwrites.
    unsafe {
        let mut status = mem::zeroed();
        Errno::result(libc::fstat(fd, &raw mut status))?;
        Ok(status)
    }
}

/// fdatasync(2).
pub(crate) fn sync(fd: c_int) -> Result<(), Errno> {
    seam::pass(Call::SyncFile)?;
    // SAFETY: it touches no memory of ours.
    Errno::result(unsafe { libc::fdatasync(fd) }).map(drop)
}
