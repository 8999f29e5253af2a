//! Files in memory: memfd_create(2) and what is done to them.

use super::seam::{self, Call};
use core::ffi::{CStr, c_int};
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// memfd_create(2): an empty file, close-on-exec, that can be sealed. `name` is for `/proc/PID/maps`.
pub(crate) fn make_file(name: &CStr) -> Result<OwnedFd, Errno> {
    seam::pass(Call::MakeFile)?;
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// ftruncate(2).
pub(crate) fn resize(file: BorrowedFd<'_>, len: usize) -> Result<(), Errno> {
    seam::pass(Call::ResizeFile)?;
    let len = libc::off_t::try_from(len).map_err(|_| Errno::EFBIG)?;
    // SAFETY: it touches no memory.
    Errno::result(unsafe { libc::ftruncate(file.as_raw_fd(), len) }).map(drop)
}

/// fallocate(2): takes `len` bytes at `offset` out of the file, which read as zeroes then.
pub(crate) fn punch(file: BorrowedFd<'_>, offset: usize, len: usize) -> Result<(), Errno> {
    seam::pass(Call::PunchFile)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (offset as libc::off_t, len as libc::off_t);
    // SAFETY: it touches no memory of ours but the file's.
    Errno::result(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// fcntl(2): nobody changes the file's length or its bytes from here on, its maker included.
pub(crate) fn seal(file: BorrowedFd<'_>) -> Result<(), Errno> {
    const SEALS: c_int =
        libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    seam::pass(Call::SealFile)?;
    // SAFETY: it touches no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, SEALS) }).map(drop)
}
