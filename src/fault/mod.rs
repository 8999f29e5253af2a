//! Everything that runs inside the SIGBUS handler, and nothing else.
//!
//! The rules of this folder: no allocation, no lock, no panic (no indexing, `unwrap` or arithmetic
//! that can panic), no lazily initialised thread-local, no formatting machinery, errno preserved,
//! under 512 bytes of stack. Clippy enforces what it can, below. What is read here is memory that
//! is present or that the kernel fills by itself, never an arena's.
//!
//! The life of a fault, from the names: [`handler`] is called; [`decode`] says where and how the
//! memory was touched; [`registry`] finds the [`region`]; [`resolve`] decides, with the [`window`]
//! and the [`ledger`]; [`fill`] installs pages from their [`source`]; [`tables`] ([`chunk`] states,
//! page [`bits`], [`summary`]) remember them, and the [`log`] their order while that is recorded.
//! What must not be resolved is a [`violation`]; what is not ours goes down the [`chain`] to what
//! lies beneath our handler, in [`layers`].

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unreachable,
        clippy::unwrap_used
    )
)]

pub(crate) mod admit;
pub(crate) mod backend;
pub(crate) mod backing;
pub(crate) mod bits;
pub(crate) mod chain;
pub(crate) mod chunk;
pub(crate) mod decode;
pub(crate) mod fill;
pub(crate) mod freed;
pub(crate) mod handler;
pub(crate) mod huge;
pub(crate) mod layers;
pub(crate) mod ledger;
pub(crate) mod lend;
pub(crate) mod log;
pub(crate) mod mappings;
pub(crate) mod merge;
pub(crate) mod pagemap;
pub(crate) mod protect;
pub(crate) mod region;
pub(crate) mod registry;
pub(crate) mod resolve;
pub(crate) mod shape;
pub(crate) mod signals;
pub(crate) mod source;
pub(crate) mod staging;
pub(crate) mod stored;
pub(crate) mod summary;
pub(crate) mod tables;
pub(crate) mod track;
mod tracked;
pub(crate) mod tuning;
pub(crate) mod verify;
pub(crate) mod violation;
pub(crate) mod want;
pub(crate) mod window;

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::process;
use crate::uffd::{Features, Uffd};
use core::ptr;
use nix::errno::Errno;
use std::os::fd::{BorrowedFd, RawFd};

use region::Region;
use registry::{ROOT_SLOTS, Registry};
use source::Zeroes;
use staging::Staging;

/// Address to region.
pub(crate) static REGISTRY: Registry<Region> = Registry {
    root: [const { AtomicPtr::new(ptr::null_mut()) }; ROOT_SLOTS],
    gate: AtomicU32::new(0),
};

/// Zeroes to copy from.
pub(crate) static ZEROES: Zeroes = Zeroes::new();

/// Where huge pages are made.
pub(crate) static STAGING: Staging = Staging::new();

/// The userfaultfd that all arenas are registered with. It is open for as long as a region is
/// published; a forked child has one of its own.
static DESCRIPTOR: AtomicU32 = AtomicU32::new(0);

/// Makes `descriptor` the one that faults are resolved with.
pub(crate) fn set_descriptor(descriptor: RawFd) {
    // Relaxed: stored before the first region is published, and published with it; and by the
    // only thread of a forked child.
    DESCRIPTOR.store(descriptor as u32, Ordering::Relaxed);
}

/// A userfaultfd for arenas that are tracked by signals, where the first has the kernel take note of writes:
/// that is a feature of a userfaultfd as a whole. -1 until there is such an arena.
static SECOND: AtomicU32 = AtomicU32::new(u32::MAX);

/// Makes `descriptor`, or none (-1), the second one.
pub(crate) fn set_second_descriptor(descriptor: RawFd) {
    // Relaxed: as in `set_descriptor`.
    SECOND.store(descriptor as u32, Ordering::Relaxed);
}

/// The number of the second descriptor, or -1, which may be the parent's in a forked child.
pub(crate) fn second_descriptor() -> RawFd {
    SECOND.load(Ordering::Relaxed) as RawFd
}

/// The userfaultfd that a region is registered with, which has to be asked to change that, or to move pages
/// there. Anything else any one will do.
pub(crate) fn uffd_of(region: &Region) -> Result<Uffd<BorrowedFd<'static>>, Errno> {
    registered_with(region.is_second)
}

/// The first userfaultfd, or the second.
pub(crate) fn registered_with(second: bool) -> Result<Uffd<BorrowedFd<'static>>, Errno> {
    if !second {
        return uffd();
    }
    if !process::is_armed() {
        return Err(Errno::ESRCH);
    }
    // SAFETY: set before a region that needs it exists, never closed while the process is armed.
    Ok(unsafe { Uffd::from_parts(BorrowedFd::borrow_raw(second_descriptor()), Features::SIGBUS) })
}

/// The number of the descriptor, which may be the parent's in a forked child.
pub(crate) fn descriptor() -> RawFd {
    DESCRIPTOR.load(Ordering::Relaxed) as RawFd
}

/// The userfaultfd of all arenas: the one way to it, so that none of its operations is ever asked
/// for by a process that has inherited it, where it would act on the memory of the parent. ESRCH
/// there, as the kernel says of a userfaultfd whose process is gone.
#[inline]
pub(crate) fn uffd() -> Result<Uffd<BorrowedFd<'static>>, Errno> {
    if !process::is_armed() {
        return Err(Errno::ESRCH);
    }
    // SAFETY: set before any region exists, never closed while the process is armed, and never -1.
    Ok(unsafe { Uffd::from_parts(BorrowedFd::borrow_raw(descriptor()), Features::SIGBUS) })
}
