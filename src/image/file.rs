//! Images in files.

use super::Storage;
use crate::sys::{self, seam::Call};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The part of a file that begins at `base`.
pub(crate) struct Window<'a> {
    pub(crate) file: BorrowedFd<'a>,
    pub(crate) base: u64,
}

impl Storage for Window<'_> {
    fn len(&self) -> Result<u64, Errno> {
        let status = sys::status(self.file.as_raw_fd())?;
        Ok((status.st_size as u64).saturating_sub(self.base))
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let mut done = 0;
        while done < into.len() {
            let rest = &mut into[done..];
            let at = self.at(offset, done)?;
            let fd = self.file.as_raw_fd();
            let (to, len) = (rest.as_mut_ptr(), rest.len());
            // SAFETY: the bytes are a slice's.
            match retry(|| unsafe { sys::read_at(Call::ReadFile, fd, to, len, at) })? {
                0 => break,
                read => done += read,
            }
        }
        Ok(done)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = &bytes[done..];
            let at = self.at(offset, done)?;
            let fd = self.file.as_raw_fd();
            let (from, len) = (rest.as_ptr(), rest.len());
            // SAFETY: the file is the image's, which its user has asked to be written.
            match retry(|| unsafe { sys::write_at(Call::WriteFile, fd, from, len, at) })? {
                0 => return Err(Errno::EIO),
                written => done += written,
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Errno> {
        retry(|| sys::sync(self.file.as_raw_fd()))
    }
}

/// Makes a call again that a signal has interrupted, but not for ever.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 0..1000 {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
    Err(Errno::EINTR)
}

impl Window<'_> {
    /// The offset in the file; those past what a file can have are too big.
    fn at(&self, offset: u64, done: usize) -> Result<usize, Errno> {
        let at = self.base.checked_add(offset).and_then(|at| at.checked_add(done as u64));
        at.filter(|at| i64::try_from(*at).is_ok()).map(|at| at as usize).ok_or(Errno::EFBIG)
    }
}

/// A file that an arena is being saved to, locked against other savers.
pub(crate) struct ImageFile {
    descriptor: OwnedFd,
}

/// The byte whose lock a saver holds: far behind all that a file can have in it.
const LOCK: i64 = i64::MAX - 1;

impl ImageFile {
    /// Locks `file`. EBADF if it is not open for reading and writing, EAGAIN if somebody else saves to it.
    ///
    /// The lock is of an open file description (fcntl(2), F_OFD_SETLK), and `file`'s may be another
    /// thread's too, or a forked child's. So the file is opened once more, by its name in `/proc`. Where
    /// that cannot be, only others who have opened it by themselves are kept out.
    pub(crate) fn lock(file: &File) -> Result<Self, Errno> {
        let flags = sys::open_flags(file.as_raw_fd())?;
        if flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(Errno::EBADF);
        }
        let descriptor = match reopen(file) {
            Ok(descriptor) => descriptor,
            // What is written would not go where it should.
            Err(_) if flags & libc::O_APPEND != 0 => return Err(Errno::EBADF),
            Err(_) => sys::duplicate(file.as_fd())?,
        };
        match sys::lock(descriptor.as_raw_fd(), libc::F_WRLCK, LOCK) {
            Ok(()) => Ok(Self { descriptor }),
            Err(Errno::EACCES) => Err(Errno::EAGAIN),
            Err(errno) => Err(errno),
        }
    }

    /// The whole file.
    pub(crate) fn window(&self) -> Window<'_> {
        Window { file: self.descriptor.as_fd(), base: 0 }
    }
}

impl Drop for ImageFile {
    fn drop(&mut self) {
        // Closing it would do, but for a child that was forked meanwhile and has a copy.
        let _ = sys::lock(self.descriptor.as_raw_fd(), libc::F_UNLCK, LOCK);
    }
}

/// Opens a file that is open once more.
fn reopen(file: &File) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/thread-self/fd/{}\0", file.as_raw_fd());
    let path = core::ffi::CStr::from_bytes_with_nul(path.as_bytes()).map_err(|_| Errno::EINVAL)?;
    sys::open(Call::OpenFile, path, libc::O_RDWR)
}
