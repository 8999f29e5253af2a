//! The system calls that make, change and ask about files.

use super::seam::{self, Call};
use core::ffi::{CStr, c_int};
use core::mem;
use nix::errno::Errno;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// memfd_create(2), close-on-exec.
pub(crate) fn memfd(name: &CStr, flags: libc::c_uint) -> Result<OwnedFd, Errno> {
    seam::pass(Call::MakeMemory)?;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_CLOEXEC) };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// ftruncate(2).
pub(crate) fn set_file_len(file: BorrowedFd<'_>, len: usize) -> Result<(), Errno> {
    seam::pass(Call::SetLength)?;
    let len = libc::off_t::try_from(len).map_err(|_| Errno::EFBIG)?;
    // SAFETY: it touches no memory of ours but pages that a caller may map, whose file it owns.
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

/// fcntl(2) F_ADD_SEALS.
pub(crate) fn seal(file: BorrowedFd<'_>, seals: libc::c_int) -> Result<(), Errno> {
    seam::pass(Call::Seal)?;
    // SAFETY: it touches no memory.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) }).map(drop)
}

/// fcntl(2) F_DUPFD_CLOEXEC.
pub(crate) fn duplicate(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    seam::pass(Call::Duplicate)?;
    // SAFETY: it touches no memory.
    let fd = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) };
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// fstat(2); works inside a signal handler.
#[inline(never)]
pub(crate) fn status(fd: c_int) -> Result<libc::stat, Errno> {
    seam::pass(Call::Stat)?;
    // SAFETY: zeroes are a valid stat, which the kernel overwrites.
    unsafe {
        let mut status = mem::zeroed();
        Errno::result(libc::fstat(fd, &raw mut status))?;
        Ok(status)
    }
}

/// Bytes of a file.
pub(crate) fn file_len(file: RawFd) -> Result<u64, Errno> {
    Ok(status(file)?.st_size as u64)
}

/// What kind of file system a file is on, and the size of its pages, by fstatfs(2).
pub(crate) fn file_system(file: BorrowedFd<'_>) -> Result<(u64, usize), Errno> {
    seam::pass(Call::Stat)?;
    // SAFETY: zeroes are a valid statfs, which fstatfs(2) overwrites.
    unsafe {
        let mut stat: libc::statfs = mem::zeroed();
        Errno::result(libc::fstatfs(file.as_raw_fd(), &raw mut stat))?;
        Ok((stat.f_type as u64, stat.f_bsize as usize))
    }
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

/// fdatasync(2).
pub(crate) fn sync(fd: c_int) -> Result<(), Errno> {
    seam::pass(Call::SyncFile)?;
    // SAFETY: it touches no memory of ours.
    Errno::result(unsafe { libc::fdatasync(fd) }).map(drop)
}
