//! What a checkpoint lies in, and how tracking begins and ends.

use super::mapping::Mapping;
use super::registrar::{REGISTRAR, close_gate, open_gate};
use super::{Arena, engine};
use crate::Errno;
use crate::atomic::Ordering;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::admit::write_protect;
use crate::fault::region::{HUGE_PAUSED, Region};
use crate::fault::track::Layout;
use crate::fork::current_thread;
use crate::uffd::{Ioctls, WriteProtectMode};

/// The memory of a checkpoint: address space as long as the arena's for what pages held, and the marks.
/// The kernel fills both as they are written.
pub(super) struct Shadow {
    tables: Mapping,
    pages: Mapping,
}

impl Shadow {
    fn new(region: &Region) -> Result<Self> {
        let shadow = Self {
            tables: Mapping::zeroed(Layout::new(region.tables.chunks()).size)?,
            pages: Mapping::zeroed(region.pages << region.page_shift)?,
        };
        // A forked child has no checkpoint: there is nothing to copy.
        for mapping in [&shadow.tables, &shadow.pages] {
            mapping.wipe_on_fork(0, mapping.len())?;
        }
        Ok(shadow)
    }
}

impl Arena {
    /// Has writes be tracked from here on, with a checkpoint that holds nothing yet. The caller has locked
    /// it.
    pub(super) fn start_tracking(&self) -> Result<()> {
        let region = self.region();
        let shadow = Shadow::new(region)?;
        // Whoever decides how to install pages knows of it: nobody is in the midst of that.
        while_faults_wait(|| {
            register(region)?;
            region.track.set_registered();
            // Relaxed: ordered by the gate.
            region.huge.fetch_or(HUGE_PAUSED, Ordering::Relaxed);
            let pages = shadow.pages.base().as_ptr().expose_provenance();
            region.track.begin(region.tracking, shadow.tables.base().as_ptr(), pages);
            drop(self.replace(Some(shadow)));
            Ok(())
        })
    }

    /// Forgets the checkpoint, if there is one, and gives its memory back. The caller has locked it.
    pub(super) fn stop_tracking(&self) {
        let region = self.region();
        if !region.track.is_on() {
            return;
        }
        let shadow = while_faults_wait(|| {
            region.track.lift();
            region.huge.fetch_and(!HUGE_PAUSED, Ordering::Relaxed);
            self.replace(None)
        });
        // No fault has a pointer to it any more.
        drop(shadow);
        // The range stays registered for writes: the kernel takes that away with the rest only, and for that
        // moment missing pages would be zeroes. It means nothing to pages that are not protected.
        let len = region.pages << region.page_shift;
        // If it fails, each page that is still protected is seen to when it is written.
        if write_protect(region.base, len, WriteProtectMode::DONTWAKE).is_ok() {
            region.track.end();
        }
    }

    /// Exchanges what the checkpoint lies in. The caller has locked the checkpoint, and keeps forks
    /// waiting: a child must not find it half exchanged, or unmapped already.
    fn replace(&self, new: Option<Shadow>) -> Option<Shadow> {
        // SAFETY: whoever holds the lock is the only one to look.
        self.checkpoint.with_mut(|it| unsafe { core::mem::replace(&mut *it, new) })
    }
}

/// Has pages of the region be protected when that is asked for.
fn register(region: &Region) -> Result<()> {
    let unsupported = Error::new(Operation::Checkpoint, ErrorKind::Unsupported);
    match engine::register_writes(region) {
        Ok(ioctls) if ioctls.contains(Ioctls::WRITEPROTECT) => Ok(()),
        Ok(_) => Err(unsupported),
        // The kernel, or its kind of machine, has no write protection.
        Err(error) if error.errno() == Some(Errno::EINVAL) => Err(unsupported),
        Err(error) => Err(error),
    }
}

/// Runs `change` while no thread is inside of a fault or a chunk, of any arena, nor forks.
fn while_faults_wait<R>(change: impl FnOnce() -> R) -> R {
    let registrar = REGISTRAR.lock();
    close_gate(&registrar, current_thread());
    let result = change();
    open_gate();
    result
}
