//! Tracking: which pages were written since a checkpoint, and where what they held then is kept.
//!
//! Present pages are write-protected by userfaultfd. With [`Tracking::Kernel`] the kernel lifts the
//! protection of a page at its first write, and tells later which ones those were; a checkpoint has
//! copied all that was present to the *shadow* beforehand. With [`Tracking::Signal`] the first write
//! raises SIGBUS, and the handler copies the page before it lifts the protection.
//!
//! Marks change while their chunk is owned, except that anybody may mark pages as written.

use super::bits::{PageBits, Snapshot};
use super::region::Region;
use super::summary::{self, Summary};
use crate::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::lock::Mutex;
use core::ptr;
use core::slice;

/// How an arena learns which pages are written after
/// [`Arena::checkpoint`](crate::Arena::checkpoint).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tracking {
    /// The kernel takes note by itself (`UFFD_FEATURE_WP_ASYNC` and PAGEMAP_SCAN, since Linux 6.7):
    /// a first write to a page costs about a microsecond, by whomever it is, system calls included.
    /// A checkpoint copies what is present; asking what was written scans it.
    Kernel,
    /// The first write to a page raises SIGBUS, and lacuna's handler takes note and copies the page
    /// (since Linux 5.7): some microseconds a page, but a checkpoint copies nothing, and neither
    /// [`written`](crate::Arena::written) nor [`rollback`](crate::Arena::rollback) looks at what was
    /// not written.
    ///
    /// **System calls do not see protected pages**: read(2) into a page that was not written since the
    /// checkpoint fails with EFAULT. [`Arena::populate`](crate::Arena::populate) a range before the kernel
    /// gets it, which counts as writing it.
    Signal,
}

/// No checkpoint.
const OFF: u32 = 0;
/// Since a checkpoint, by [`Tracking::Kernel`] or [`Tracking::Signal`].
const KERNEL: u32 = 1;
const SIGNAL: u32 = 2;
/// The checkpoint is gone, but pages may still be protected.
const LIFTING: u32 = 3;

/// What a region knows of its checkpoint. The pointers are set while no thread is inside of a fault or a
/// chunk, so whoever has pinned the region finds all of them or none.
pub(crate) struct Track {
    state: AtomicU32,
    /// The tables, see [`Layout`]; null without a checkpoint.
    tables: AtomicPtr<u8>,
    /// The address of the shadow.
    shadow: AtomicUsize,
    /// Pages of the shadow that hold memory.
    stored: AtomicU64,
    /// Rollbacks so far.
    pub(crate) round: AtomicU64,
    /// 1 once nothing is to be kept hot any more.
    cool: AtomicU32,
    /// 1 once the region is registered for writes too.
    registered: AtomicU32,
    /// Held by the one method that works on the checkpoint.
    pub(crate) busy: Mutex<()>,
}

/// One chunk's marks. All zeroes is a chunk without any.
#[repr(C, align(64))]
pub(crate) struct Marks {
    /// Pages that were present at the checkpoint.
    pub(crate) held: PageBits,
    /// Pages whose content at the checkpoint the shadow has.
    pub(crate) saved: PageBits,
    /// Pages of the shadow that hold memory; where there is none, it reads as zeroes.
    pub(crate) stored: PageBits,
    /// Pages that are known to be written since.
    pub(crate) written: PageBits,
    /// Pages that are left unprotected, since each round writes them, and compared instead.
    pub(crate) hot: PageBits,
    /// Pages that were written in the round before the rollback `round`.
    pub(crate) before: PageBits,
    pub(crate) round: AtomicU64,
}

/// Byte offsets of the tables for a number of chunks: a summary of the chunks that have something to look
/// at, and each chunk's marks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    marks: usize,
    /// Bytes in all.
    pub(crate) size: usize,
}

impl Layout {
    #[allow(clippy::arithmetic_side_effects, reason = "chunks of an address space: it fits")]
    pub(crate) fn new(chunks: usize) -> Self {
        let words: usize = summary::words(chunks).iter().sum();
        let marks = (words * size_of::<AtomicU64>()).next_multiple_of(align_of::<Marks>());
        Self { marks, size: marks + chunks * size_of::<Marks>() }
    }
}

impl Track {
    pub(crate) const fn new() -> Self {
        Self {
            state: AtomicU32::new(OFF),
            tables: AtomicPtr::new(ptr::null_mut()),
            shadow: AtomicUsize::new(0),
            stored: AtomicU64::new(0),
            round: AtomicU64::new(0),
            cool: AtomicU32::new(0),
            registered: AtomicU32::new(0),
            busy: Mutex::new(()),
        }
    }

    /// Begins: `tables`, zeroed and as long as the [`Layout`] says, and the shadow stay until
    /// [`lift`](Self::lift). No thread is inside of a fault or a chunk.
    pub(crate) fn begin(&self, tracking: Tracking, tables: *mut u8, shadow: usize) {
        // Relaxed, all of them: whoever pins the region afterwards is ordered after by the gate.
        self.tables.store(tables, Ordering::Relaxed);
        self.shadow.store(shadow, Ordering::Relaxed);
        self.stored.store(0, Ordering::Relaxed);
        let state = if tracking == Tracking::Kernel { KERNEL } else { SIGNAL };
        self.state.store(state, Ordering::Relaxed);
    }

    /// Forgets the checkpoint, as the counterpart of [`begin`](Self::begin); protected pages stay so until
    /// they are written, or somebody lifts that, and then calls [`end`](Self::end).
    pub(crate) fn lift(&self) {
        self.state.store(LIFTING, Ordering::Relaxed);
        self.tables.store(ptr::null_mut(), Ordering::Relaxed);
        self.shadow.store(0, Ordering::Relaxed);
        self.stored.store(0, Ordering::Relaxed);
    }

    /// No page is protected any more.
    pub(crate) fn end(&self) {
        // Relaxed: to whoever sees it later, a page that was protected is one that can be written.
        self.state.store(OFF, Ordering::Relaxed);
    }

    /// In a forked child, which has no checkpoint and no other thread.
    pub(crate) fn forget(&self) {
        self.lift();
        self.end();
        // What is not wiped is registered anew, for missing pages alone.
        self.registered.store(0, Ordering::Relaxed);
        if self.busy.is_locked() {
            // SAFETY: whoever locked it is a thread of the parent's: it is not there to unlock its copy.
            unsafe { self.busy.force_unlock() };
        }
    }

    /// Whether there is no checkpoint, nor any page still protected by the last one.
    pub(crate) fn is_off(&self) -> bool {
        self.state.load(Ordering::Relaxed) == OFF
    }

    /// Whether the region is registered for writes too: it stays so after its first checkpoint.
    pub(crate) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed) != 0
    }

    /// Takes note that the region is registered for writes too. No thread is inside of a fault or a chunk.
    pub(crate) fn set_registered(&self) {
        // Relaxed: as in `begin`.
        self.registered.store(1, Ordering::Relaxed);
    }

    /// Whether there is a checkpoint.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), KERNEL | SIGNAL)
    }

    /// Whether the kernel is the one that takes note of writes.
    pub(crate) fn is_by_kernel(&self) -> bool {
        self.state.load(Ordering::Relaxed) == KERNEL
    }

    /// Whether a write to a present page may raise a signal.
    pub(crate) fn is_by_signal(&self) -> bool {
        matches!(self.state.load(Ordering::Relaxed), SIGNAL | LIFTING)
    }

    /// Whether pages may become hot.
    pub(crate) fn may_heat(&self) -> bool {
        self.cool.load(Ordering::Relaxed) == 0
    }

    /// Says whether no page is to become hot.
    pub(crate) fn set_cool(&self, cool: bool) {
        // Relaxed: read and written by holders of the lock.
        self.cool.store(u32::from(cool), Ordering::Relaxed);
    }

    /// Counts `new` pages of the shadow that hold memory now, and `dropped` that hold none any more.
    pub(super) fn count_stored(&self, new: usize, dropped: usize) {
        // Relaxed: statistics.
        self.stored.fetch_add((new as u64).wrapping_sub(dropped as u64), Ordering::Relaxed);
    }

    /// Pages of memory that the checkpoint holds.
    pub(crate) fn stored_pages(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }
}

impl Region {
    /// The chunks whose marks need looking at.
    pub(crate) fn touched(&self) -> Option<Summary<'_>> {
        let base = self.track.tables.load(Ordering::Relaxed).cast::<AtomicU64>();
        if base.is_null() {
            return None;
        }
        let [leaf, middle, top] = summary::words(self.tables.chunks());
        // SAFETY: the layout has room for the three levels at its start; zeroes are valid atomics; the
        // memory stays for as long as the checkpoint, which goes when nobody has the region pinned or
        // the checkpoint locked.
        unsafe {
            Some(Summary {
                levels: [
                    slice::from_raw_parts(base, leaf),
                    slice::from_raw_parts(base.wrapping_add(leaf), middle),
                    slice::from_raw_parts(base.wrapping_add(leaf).wrapping_add(middle), top),
                ],
            })
        }
    }

    /// The marks of chunk `index`.
    pub(crate) fn marks(&self, index: usize) -> Option<&Marks> {
        let base = self.track.tables.load(Ordering::Relaxed);
        let chunks = self.tables.chunks();
        if base.is_null() || index >= chunks {
            return None;
        }
        let at = base.wrapping_add(Layout::new(chunks).marks).cast::<Marks>().wrapping_add(index);
        // SAFETY: the index is within the table; zeroes are valid marks; the memory as in `touched`.
        Some(unsafe { &*at })
    }

    /// Where the shadow has page `page` of the reservation.
    pub(crate) fn shadow_of(&self, page: usize) -> *mut u8 {
        let shadow = self.track.shadow.load(Ordering::Relaxed);
        ptr::with_exposed_provenance_mut(shadow.wrapping_add(page.wrapping_shl(self.page_shift)))
    }

    /// Takes note that `pages` of a chunk have to be looked at by the next rollback, `written` if they
    /// are.
    pub(crate) fn touch(&self, index: usize, written: Option<&Snapshot>) {
        if let (Some(marks), Some(written)) = (self.marks(index), written) {
            marks.written.add(written);
        }
        touch(self, index);
    }
}

/// Has the next rollback look at chunk `index`, before pages of it are installed. Kept out of the frames that
/// it is called from.
#[cold]
#[inline(never)]
pub(super) fn touch(region: &Region, index: usize) {
    if let Some(touched) = region.touched() {
        touched.set(index);
    }
}

/// Whether page `page` of the reservation is marked as written.
pub(super) fn is_marked(region: &Region, page: usize) -> bool {
    let shift = region.chunk_page_shift();
    let index = page & region.chunk_pages().wrapping_sub(1);
    region.marks(page >> shift).is_some_and(|marks| marks.written.get(index))
}

/// Marks page `page` of the reservation, which was installed for a thread that is about to write it. As a
/// filler, before the bit that says it is present is set: who finds that finds the mark as well.
pub(super) fn note_written(region: &Region, page: usize) {
    let index = page & region.chunk_pages().wrapping_sub(1);
    if let Some(marks) = region.marks(page >> region.chunk_page_shift()) {
        marks.written.set(index..index.saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_do_not_overlap() {
        for chunks in [1, 64, 65, 4097, 1 << 25] {
            let layout = Layout::new(chunks);
            assert!(summary::words(chunks).iter().sum::<usize>() * 8 <= layout.marks);
            assert!(layout.marks.is_multiple_of(align_of::<Marks>()));
            assert_eq!(layout.marks + chunks * size_of::<Marks>(), layout.size);
        }
    }
}
