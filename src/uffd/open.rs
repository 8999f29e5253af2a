//! Opening: which descriptor, and the handshake that decides its features.

use super::{Features, Ioctls, Uffd, abi};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::sys::{self, seam::Call};
use core::ffi::c_int;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// What the running kernel supports: the answer to [`Uffd::probe`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Support {
    /// Every feature that can be asked for. Asking for [`Features::EVENT_FORK`] needs
    /// `CAP_SYS_PTRACE` besides.
    pub features: Features,
    /// The requests that work on the descriptor itself. [`Uffd::register`] answers for a range.
    pub ioctls: Ioctls,
}

/// How to open a [`Uffd`]: see [`Uffd::builder`].
#[must_use = "a builder opens nothing until `open`"]
#[derive(Clone, Copy, Debug)]
pub struct UffdBuilder {
    features: Features,
    nonblocking: bool,
    user_mode_only: bool,
}

impl Uffd {
    /// Asks the kernel what it supports.
    ///
    /// A userfaultfd can be shaken hands with once, so this opens one of its own, asks for nothing,
    /// and closes it: the two-step handshake of ioctl_userfaultfd(2), BUGS.
    ///
    /// ```
    /// use lacuna::uffd::{Features, Uffd};
    ///
    /// let support = Uffd::probe()?;
    /// assert!(support.features.contains(Features::SIGBUS));
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`UffdBuilder::open`].
    #[doc(alias = "UFFDIO_API")]
    pub fn probe() -> Result<Support> {
        Self::builder().probe()
    }

    /// Starts opening a userfaultfd: without features, blocking, for faults of user mode only.
    ///
    /// ```
    /// use lacuna::uffd::{Features, Uffd};
    ///
    /// let uffd = Uffd::builder().features(Features::SIGBUS).open()?;
    /// assert_eq!(uffd.features(), Features::SIGBUS);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub const fn builder() -> UffdBuilder {
        UffdBuilder { features: Features::empty(), nonblocking: false, user_mode_only: true }
    }
}

impl UffdBuilder {
    /// The features to enable; none by default.
    pub const fn features(mut self, features: Features) -> Self {
        self.features = features;
        self
    }

    /// Whether [`Uffd::read_event`] returns `None` when no event is queued, instead of waiting for
    /// one; `false` by default. Only a nonblocking userfaultfd can be waited for with poll(2).
    #[doc(alias = "O_NONBLOCK")]
    pub const fn nonblocking(mut self, nonblocking: bool) -> Self {
        self.nonblocking = nonblocking;
        self
    }

    /// Whether only faults of user mode are handled, so that a system call that is given a missing
    /// page fails with `EFAULT`; `true` by default.
    ///
    /// `false` needs `CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd=1` or access to
    /// `/dev/userfaultfd`; `true` needs no privilege since Linux 5.11, and means nothing before. With
    /// [`Features::SIGBUS`] it makes no difference: faults of the kernel fail in any case.
    #[doc(alias = "UFFD_USER_MODE_ONLY")]
    pub const fn user_mode_only(mut self, user_mode_only: bool) -> Self {
        self.user_mode_only = user_mode_only;
        self
    }

    /// Opens the userfaultfd, close-on-exec, by userfaultfd(2) or, where that is denied and the
    /// device is not, by `/dev/userfaultfd` (since Linux 6.1).
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::Conflict`]: [`Features::SIGBUS`] together with one of [`Features::EVENTS`].
    ///   The kernel allows it, but an event that nobody reads makes its cause wait for ever.
    /// - [`ErrorKind::Unsupported`]: the kernel lacks some of the features; the error names the bits.
    /// - `EPERM`, `EACCES`: userfaultfd(2) is denied by a seccomp filter, a security module or for
    ///   lack of privilege, and the device cannot be opened. From `UFFDIO_API`, `EPERM` means
    ///   [`Features::EVENT_FORK`] without `CAP_SYS_PTRACE`.
    /// - `ENOSYS`: the kernel or sandbox has no userfaultfd.
    /// - `EMFILE`, `ENFILE`, `ENOMEM`: no descriptor or memory is left.
    #[doc(alias("userfaultfd", "UFFDIO_API", "USERFAULTFD_IOC_NEW"))]
    pub fn open(self) -> Result<Uffd> {
        if self.features.contains(Features::SIGBUS) && self.features.intersects(Features::EVENTS) {
            let bits = self.features.bits();
            return Err(Error::new(Operation::Api, ErrorKind::Conflict).bits(bits));
        }
        let missing = self.features.difference(self.probe()?.features);
        if !missing.is_empty() {
            let bits = missing.bits();
            return Err(Error::new(Operation::Api, ErrorKind::Unsupported).bits(bits));
        }
        let fd = self.descriptor()?;
        handshake(&fd, self.features)?;
        Ok(Uffd { fd, features: self.features })
    }

    fn probe(self) -> Result<Support> {
        handshake(&self.descriptor()?, Features::empty())
    }

    /// A userfaultfd that has not been shaken hands with.
    fn descriptor(self) -> Result<OwnedFd> {
        let denied = match self.open_with(system_call) {
            Ok(fd) => return Ok(fd),
            Err(errno) => errno,
        };
        // What a seccomp filter answers is its author's choice among these; the device knows
        // nothing of the filter. Any other error would come back from the device as well.
        let device = match denied {
            Errno::EPERM | Errno::EACCES | Errno::ENOSYS => self.open_with(device),
            _ => Err(denied),
        };
        device.map_err(|_| Error::os(Operation::Open, denied))
    }

    fn open_with(self, open: fn(c_int) -> nix::Result<OwnedFd>) -> nix::Result<OwnedFd> {
        let mut flags = OFlag::O_CLOEXEC;
        flags.set(OFlag::O_NONBLOCK, self.nonblocking);
        let flags = flags.bits();
        if !self.user_mode_only {
            return open(flags);
        }
        match open(flags | abi::UFFD_USER_MODE_ONLY as c_int) {
            // Linux before 5.11 does not know the flag.
            Err(Errno::EINVAL) => open(flags),
            result => result,
        }
    }
}

/// userfaultfd(2).
fn system_call(flags: c_int) -> nix::Result<OwnedFd> {
    let fd = sys::userfaultfd(flags)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `USERFAULTFD_IOC_NEW` of the device, which file permissions guard instead.
fn device(flags: c_int) -> nix::Result<OwnedFd> {
    let device = sys::open(Call::OpenDevice, c"/dev/userfaultfd", libc::O_RDWR)?;
    let fd = abi::new(device.as_raw_fd(), flags)?;
    // SAFETY: the device has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `UFFDIO_API`: enables `features` and learns what there is.
fn handshake(fd: &OwnedFd, features: Features) -> Result<Support> {
    let mut argument =
        abi::uffdio_api { api: u64::from(abi::UFFD_API), features: features.bits(), ioctls: 0 };
    // SAFETY: `fd` is a userfaultfd, and the request writes nothing but its argument.
    match unsafe { abi::api(fd.as_raw_fd(), &raw mut argument) } {
        Ok(_) => Ok(Support {
            features: Features::from_bits_retain(argument.features),
            ioctls: Ioctls::from_bits_retain(argument.ioctls),
        }),
        Err(errno) => Err(Error::os(Operation::Api, errno)),
    }
}
