//! userfaultfd as Rust types: every operation and flag of ioctl_userfaultfd(2), and nothing more.
//!
//! A [`Uffd`] is told about page faults in the memory that is registered with it, and fills pages
//! while others look at them. How it is told is decided when it is opened:
//!
//! - with [`Features::SIGBUS`], the thread that faults gets a SIGBUS, whose handler resolves the
//!   fault; nothing is queued and nobody waits. This is what lacuna's arenas use.
//! - otherwise the thread sleeps, and another thread or process reads an [`Event`] and resolves it.
//!
//! This module adds types, ownership and error reports to the kernel's interface, and no policy.
//! Every operation is one system call, takes no lock, allocates nothing and cannot panic, so a
//! [`Uffd<BorrowedFd<'static>>`](Uffd) works inside a signal handler, which has to preserve `errno`.
//!
//! Operations that install pages return [`Progress`], because the kernel may stop halfway. The
//! others return [`Result`](crate::Result). What changes memory that somebody may be looking at is
//! `unsafe`; nothing here checks who owns an address.
//!
//! # Examples
//!
//! Another thread touches a missing page; this one sees the event and provides the page.
//!
//! ```
//! use lacuna::uffd::{CopyMode, Event, Features, RegisterMode, Uffd};
//! use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
//! use std::num::NonZeroUsize;
//!
//! let page = lacuna::page_size();
//! let len = NonZeroUsize::new(page).ok_or("no page size")?;
//! // SAFETY: a new mapping, placed by the kernel.
//! let memory = unsafe {
//!     mmap_anonymous(None, len, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE)?.cast::<u8>()
//! };
//!
//! let uffd = Uffd::builder().features(Features::EXACT_ADDRESS).open()?;
//! // SAFETY: nobody else knows this mapping.
//! unsafe { uffd.register(memory.as_ptr(), page, RegisterMode::MISSING)? };
//!
//! let address = memory.addr().get() + 42;
//! // SAFETY: the byte lies in the mapping. It may be missing: the read waits until it is there.
//! let reader = std::thread::spawn(move || unsafe { (address as *const u8).read_volatile() });
//!
//! match uffd.read_event()? {
//!     Some(Event::Pagefault { address: touched, .. }) => assert_eq!(touched, address),
//!     other => panic!("expected a page fault, got {other:?}"),
//! }
//! let content = vec![7; page];
//! // SAFETY: the only one that looks at the page waits for it, and any byte will do.
//! unsafe { uffd.copy(memory.as_ptr(), content.as_ptr(), page, CopyMode::empty()) }
//!     .into_result()?;
//! assert_eq!(reader.join().unwrap(), 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod abi;
mod event;
mod features;
mod install;
mod modes;
mod open;
mod progress;
mod register;

pub use event::{Event, EventBuffer, Events, PagefaultFlags};
pub use features::{Features, Ioctls};
pub use modes::{
    ContinueMode, CopyMode, MoveMode, PoisonMode, RegisterMode, WriteProtectMode, ZeropageMode,
};
pub use open::{Support, UffdBuilder};
pub use progress::Progress;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// A userfaultfd that is ready for use, on a descriptor that it owns or borrows.
///
/// When the last descriptor of a userfaultfd is closed, everything that is registered with it
/// becomes ordinary memory: pages that are missing read as zero from then on, without a fault. So
/// an owned `Uffd` has to outlive every use of memory whose missing pages are not to be zero.
/// Conversely, closing it is no way to unregister at once: a child that is being spawned has a
/// descriptor too until it executes its program.
///
/// It governs the memory of the process that opened it, also when a forked child or another process
/// that was given the descriptor operates on it.
#[derive(Debug)]
#[doc(alias = "userfaultfd")]
pub struct Uffd<F = OwnedFd> {
    fd: F,
    features: Features,
}

impl<F> Uffd<F> {
    /// Takes a descriptor that was opened elsewhere: by another library, or by another process
    /// that sent it.
    ///
    /// # Safety
    ///
    /// `fd` is a userfaultfd, and will stay the same one, on which the `UFFDIO_API` handshake was
    /// done with `features`. (Another kind of file would be read as events, and events carry
    /// descriptors.)
    #[must_use]
    pub const unsafe fn from_parts(fd: F, features: Features) -> Self {
        Self { fd, features }
    }

    /// The features that it was opened with.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// The descriptor; nothing is unregistered unless it is closed.
    #[must_use]
    pub fn into_fd(self) -> F {
        self.fd
    }
}

impl<F: AsFd> Uffd<F> {
    /// The same userfaultfd on a borrowed descriptor, which is `Copy`.
    #[must_use]
    pub fn borrow(&self) -> Uffd<BorrowedFd<'_>> {
        Uffd { fd: self.fd.as_fd(), features: self.features }
    }

    fn raw(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }
}

impl Clone for Uffd<BorrowedFd<'_>> {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for Uffd<BorrowedFd<'_>> {}

impl<F: AsFd> AsFd for Uffd<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<F: AsFd> AsRawFd for Uffd<F> {
    fn as_raw_fd(&self) -> RawFd {
        self.raw()
    }
}

impl From<Uffd> for OwnedFd {
    fn from(uffd: Uffd) -> Self {
        uffd.into_fd()
    }
}
