//! Letting threads write while there is a checkpoint: what a page held is saved before, and its protection
//! is lifted after.

use super::bits::Snapshot;
use super::decode::Access;
use super::region::Region;
use super::tables::Chunk;
use super::track::{Marks, touch};
use super::uffd;
use super::verify::is_accessible;
use crate::sys::{self, pause};
use crate::uffd::WriteProtectMode;
use core::ops::Range;
use core::ptr;
use nix::errno::Errno;

/// Has page `page`, which a thread is about to write, be writable. False if that cannot be had.
#[cold]
#[inline(never)]
pub(super) fn admit_writer(region: &Region, page: usize) -> bool {
    let Some((chunk, index)) = region.chunk_of(page) else { return false };
    if !chunk.own() {
        // The work of the owner is short.
        pause(10_000);
        return true;
    }
    let result = admit_one(region, &chunk, index);
    chunk.state.release();
    result.is_ok()
}

/// Has page `page`, which lies past the limit and which a thread is about to write, be writable if what is in
/// the way is its protection: pages that are present stay usable there. False if it is something else.
#[cold]
#[inline(never)]
pub(super) fn admit_past_limit(region: &Region, page: usize, access: Access) -> bool {
    access == Access::Write
        && region.track.is_by_signal()
        && region.chunk_of(page).is_some_and(|(chunk, index)| chunk.is_present(index))
        // Should somebody have dropped it, lifting the protection would change nothing.
        && is_accessible(region, page, Access::Read)
        && admit_writer(region, page)
}

/// As [`admit`], for one page, in a frame that the handler has room for.
#[inline(always)]
fn admit_one(region: &Region, chunk: &Chunk<'_>, index: usize) -> Result<(), Errno> {
    if !chunk.is_present(index) {
        return Ok(());
    }
    let alone = index..index.saturating_add(1);
    if let Some(marks) = region.marks(chunk.index) {
        if marks.held.get(index) && !marks.saved.get(index) {
            save(region, chunk, marks, alone.clone())?;
        }
        marks.written.set(alone.clone());
        touch(region, chunk.index);
    }
    unprotect(region, chunk, alone)
}

/// Has `pages` of a chunk, as its owner, be writable where they are present: saves them before, and counts
/// them as written.
pub(crate) fn admit(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>) -> Result<(), Errno> {
    let mut set = Snapshot::EMPTY;
    set.insert(pages);
    let set = set.and(&chunk.present());
    if set.is_empty() {
        return Ok(());
    }
    save_held(region, chunk, &set)?;
    region.touch(chunk.index, Some(&set));
    // From here on they change.
    set.runs().try_for_each(|run| unprotect(region, chunk, run))
}

/// Saves those of `pages` that the checkpoint holds and the shadow has not, as the chunk's owner, before
/// they change or go.
pub(crate) fn save_held(region: &Region, chunk: &Chunk<'_>, pages: &Snapshot) -> Result<(), Errno> {
    let Some(marks) = region.marks(chunk.index) else { return Ok(()) };
    let missing = pages.and(&marks.held.load()).minus(&marks.saved.load());
    missing.runs().try_for_each(|run| save(region, chunk, marks, run))
}

/// Copies `pages` of a chunk, all of them present, to the shadow, as the chunk's owner. The kernel copies:
/// other threads may be writing, or have dropped a page behind our back, which is passed over.
#[inline(never)]
pub(crate) fn save(
    region: &Region,
    chunk: &Chunk<'_>,
    marks: &Marks,
    pages: Range<usize>,
) -> Result<(), Errno> {
    let first = region.pages_of(chunk.index).start;
    let mut page = pages.start;
    while page < pages.end {
        let at = first.wrapping_add(page);
        let len = pages.end.wrapping_sub(page).wrapping_shl(region.page_shift);
        // SAFETY: the shadow is as long as the reservation, and these pages of it their chunk's owner's.
        let copied = unsafe { sys::copy_out(region.shadow_of(at), region.address_of(at), len) };
        let done = match copied {
            Ok(bytes) => bytes >> region.page_shift,
            Err(Errno::EFAULT) => 0,
            Err(errno) => return Err(errno),
        };
        let end = page.wrapping_add(done);
        mark_saved(region, marks, page..end);
        page = end;
        if done == 0 {
            // Either it is not there, or there is no memory for the copy.
            if is_accessible(region, at, Access::Read) {
                return Err(Errno::ENOMEM);
            }
            page = page.wrapping_add(1);
        }
    }
    Ok(())
}

/// Takes note that the shadow has `pages` of a chunk.
pub(crate) fn mark_saved(region: &Region, marks: &Marks, pages: Range<usize>) {
    let new = marks.stored.set(pages.clone());
    marks.saved.set(pages);
    region.track.count_stored(new, 0);
}

/// Gives back what the shadow has of `pages` of a chunk, as its owner.
pub(crate) fn drop_saved(region: &Region, chunk: &Chunk<'_>, marks: &Marks, pages: &Snapshot) {
    marks.saved.remove(pages);
    let first = region.pages_of(chunk.index).start;
    let mut dropped = 0usize;
    for run in pages.and(&marks.stored.load()).runs() {
        let start = region.shadow_of(first.wrapping_add(run.start));
        let len = run.len().wrapping_shl(region.page_shift);
        // SAFETY: these pages of the shadow are of no use any more.
        if unsafe { sys::advise(start, len, libc::MADV_DONTNEED) }.is_ok() {
            dropped = dropped.wrapping_add(marks.stored.clear(run));
        }
    }
    region.track.count_stored(0, dropped);
}

/// Takes note, as the owner of a chunk, that `pages` of it, which were present, were discarded.
pub(crate) fn note_discarded(region: &Region, chunk: &Chunk<'_>, pages: &Snapshot) {
    let Some(marks) = region.marks(chunk.index) else { return };
    let held = marks.held.load();
    marks.hot.remove(pages);
    // Those that were absent at the checkpoint are again.
    marks.written.remove(&pages.minus(&held));
    region.touch(chunk.index, Some(&pages.and(&held)));
}

/// Has the next write to `pages` of a chunk, all of them present, be noticed; as the chunk's owner.
pub(crate) fn protect(
    region: &Region,
    chunk: &Chunk<'_>,
    pages: Range<usize>,
) -> Result<(), Errno> {
    change(region, chunk, pages, WriteProtectMode::WP)
}

#[inline(never)]
fn unprotect(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>) -> Result<(), Errno> {
    change(region, chunk, pages, WriteProtectMode::DONTWAKE)
}

fn change(
    region: &Region,
    chunk: &Chunk<'_>,
    pages: Range<usize>,
    mode: WriteProtectMode,
) -> Result<(), Errno> {
    let first = region.pages_of(chunk.index).start;
    let start = region.address_of(first.wrapping_add(pages.start));
    let len = pages.len().wrapping_shl(region.page_shift);
    write_protect(start, len, mode)
}

/// UFFDIO_WRITEPROTECT, until it is done: with huge pages about it may have to be tried again.
pub(crate) fn write_protect(start: usize, len: usize, mode: WriteProtectMode) -> Result<(), Errno> {
    const ATTEMPTS: u32 = 1000;
    let uffd = uffd()?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the range is part of a reservation of ours, whose writers are prepared for it.
        match unsafe { uffd.write_protect(ptr::with_exposed_provenance_mut(start), len, mode) } {
            Ok(()) => return Ok(()),
            Err(error) => match error.errno() {
                Some(Errno::EAGAIN | Errno::EINTR) => pause(10_000),
                errno => return Err(errno.unwrap_or(Errno::UnknownErrno)),
            },
        }
    }
    Err(Errno::EAGAIN)
}
