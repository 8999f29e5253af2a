//! How far an operation came: the kernel may do part of a range and then stop.

use crate::error::{Error, Operation, Result};
use core::ffi::c_int;
use nix::errno::Errno;

/// How far an operation that installs pages came, and why it stopped if it did.
///
/// The kernel works through a range page by page. When it stops after the first page, the request
/// fails with `EAGAIN` and *part of the work is done*: [`Progress::bytes`] says how much. The next
/// request, from there on, reports the cause. When not even the first page could be done, `bytes` is
/// zero and [`Progress::errno`] is the cause.
///
/// `EAGAIN` with zero bytes means that the memory map is changing: try again.
///
/// # Examples
///
/// Fill a range whatever part of it is there already:
///
/// ```
/// use lacuna::Errno;
/// use lacuna::uffd::{Uffd, ZeropageMode};
///
/// /// # Safety
/// /// As for [`Uffd::zeropage`].
/// unsafe fn fill(uffd: &Uffd, start: *mut u8, pages: usize) -> lacuna::Result<()> {
///     let page = lacuna::page_size();
///     let (mut at, len) = (0, pages * page);
///     while at < len {
///         // SAFETY: part of the range that the caller promised.
///         let progress =
///             unsafe { uffd.zeropage(start.wrapping_add(at), len - at, ZeropageMode::empty()) };
///         at += progress.bytes();
///         match progress.errno() {
///             None | Some(Errno::EAGAIN) => {}
///             Some(Errno::EEXIST) => at += page,
///             Some(_) => return progress.into_result().map(drop),
///         }
///     }
///     Ok(())
/// }
/// ```
#[must_use = "an operation may have done a part of its range only"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    operation: Operation,
    errno: Option<Errno>,
    start: usize,
    len: usize,
    /// Never more than `len`.
    bytes: usize,
}

impl Progress {
    /// `out` is the request's output field, which must have been zero before: the kernel leaves it
    /// alone when it refuses the arguments, and otherwise puts bytes or a negated errno there.
    pub(super) fn new(
        operation: Operation,
        start: u64,
        len: u64,
        out: i64,
        outcome: nix::Result<c_int>,
    ) -> Self {
        // No operation is longer than the address space, so the conversions lose nothing.
        let len = len as usize;
        let bytes = usize::try_from(out).unwrap_or(0).min(len);
        Self { operation, errno: outcome.err(), start: start as usize, len, bytes }
    }

    /// Bytes done, from the start of the range; a multiple of the page size. These pages are
    /// installed, whether or not the operation stopped short.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// Why the operation stopped before the end of the range; `None` if it did not.
    #[must_use]
    pub const fn errno(self) -> Option<Errno> {
        self.errno
    }

    /// Whether the whole range is done.
    #[must_use]
    pub const fn is_complete(self) -> bool {
        self.errno.is_none()
    }

    /// The length of the range in bytes if all of it is done.
    ///
    /// # Errors
    ///
    /// What stopped the operation, with the part of the range that remains. Take
    /// [`Progress::bytes`] first if the part that was done matters.
    pub const fn into_result(self) -> Result<usize> {
        match self.errno {
            None => Ok(self.bytes),
            Some(errno) => {
                let rest = self.start.wrapping_add(self.bytes);
                let end = self.start.wrapping_add(self.len);
                Err(Error::os(self.operation, errno).range(rest, end))
            }
        }
    }
}
