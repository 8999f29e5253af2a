//! The descriptors that arenas share: the userfaultfd, a second one where it takes two, and the pagemap
//! that written pages are asked of.

use super::engine;
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{ErrorKind, Result};
use crate::fault::backend::Backend;
use crate::fault::pagemap::Pagemap;
use crate::fault::track::Tracking;
use crate::fault::{descriptor, second_descriptor, set_descriptor, set_second_descriptor};
use crate::uffd::{Features, Uffd};
use core::mem::ManuallyDrop;
use nix::errno::Errno;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// 1 if the first userfaultfd has the kernel take note of writes.
static NOTES_WRITES: AtomicU32 = AtomicU32::new(0);

/// `/proc/self/pagemap` of this process, or none.
static PAGEMAP: AtomicU32 = AtomicU32::new(u32::MAX);

/// Opens the userfaultfd of all arenas, and has the kernel take note of writes where it can: that means
/// nothing to ranges that are registered for missing pages alone.
pub(super) fn open_first() -> Result<Uffd> {
    let features = Features::SIGBUS | Features::WP_ASYNC;
    let (uffd, notes_writes) = match Uffd::builder().features(features).open() {
        // Before Linux 6.7.
        Err(error) if is_unknown(error.kind(), error.errno()) => {
            (Uffd::builder().features(Features::SIGBUS).open()?, 0)
        }
        result => (result?, 1),
    };
    // Relaxed: published with the descriptor, or by the only thread of a forked child.
    NOTES_WRITES.store(notes_writes, Ordering::Relaxed);
    Ok(uffd)
}

fn is_unknown(kind: ErrorKind, errno: Option<Errno>) -> bool {
    kind == ErrorKind::Unsupported || errno == Some(Errno::EINVAL)
}

fn open_second() -> Result<()> {
    let uffd = Uffd::builder().features(Features::SIGBUS).open()?;
    set_second_descriptor(uffd.into_fd().into_raw_fd());
    Ok(())
}

/// How an arena that asks for `asked` is tracked, and whether it has to be registered with the second
/// userfaultfd, which is there then.
pub(super) fn tracking(asked: Option<Tracking>, backend: Backend) -> Result<(Tracking, bool)> {
    let notes_writes = NOTES_WRITES.load(Ordering::Relaxed) != 0;
    let default = if notes_writes { Tracking::Kernel } else { Tracking::Signal };
    let tracking = asked.unwrap_or(default);
    let second = backend == Backend::Userfaultfd && notes_writes && tracking == Tracking::Signal;
    if second && second_descriptor() == -1 {
        let _starting = engine::begin()?;
        if second_descriptor() == -1 {
            open_second()?;
        }
    }
    Ok((tracking, second))
}

/// Whether the kernel can take note of writes.
pub(super) fn notes_writes() -> bool {
    NOTES_WRITES.load(Ordering::Relaxed) != 0
}

/// Replaces the inherited descriptors, in a forked child.
pub(super) fn reopen() -> Result<()> {
    let pagemap = PAGEMAP.swap(u32::MAX, Ordering::Relaxed) as RawFd;
    let second = second_descriptor();
    set_second_descriptor(-1);
    for inherited in [descriptor(), second, pagemap] {
        if inherited != -1 {
            // SAFETY: the descriptor is this process's copy, and from here on used by nobody: the
            // process is not armed.
            drop(unsafe { OwnedFd::from_raw_fd(inherited) });
        }
    }
    set_descriptor(open_first()?.into_fd().into_raw_fd());
    if second != -1 { open_second() } else { Ok(()) }
}

/// The pagemap of this process, which stays open: opening it takes longer than a rollback should.
pub(super) fn pagemap() -> Result<ManuallyDrop<Pagemap>, Errno> {
    let mut descriptor = PAGEMAP.load(Ordering::Relaxed);
    if descriptor == u32::MAX {
        let new = Pagemap::open()?.into_descriptor().into_raw_fd();
        // Relaxed: nothing but the number is told.
        let stored =
            PAGEMAP.compare_exchange(descriptor, new as u32, Ordering::Relaxed, Ordering::Relaxed);
        descriptor = match stored {
            Ok(_) => new as u32,
            Err(first) => {
                // SAFETY: opened above, and known to nobody else.
                drop(unsafe { OwnedFd::from_raw_fd(new) });
                first
            }
        };
    }
    // SAFETY: opened by this process, and closed by a forked child alone, for its own copy; it is not
    // closed here.
    Ok(ManuallyDrop::new(Pagemap::of(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })))
}
