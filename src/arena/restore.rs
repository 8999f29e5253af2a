//! What a rollback does with the pages of one chunk: a plan, and restoring what was written.

use crate::atomic::Ordering;
use crate::fault::admit::mark_saved;
use crate::fault::bits::Snapshot;
use crate::fault::region::Region;
use crate::fault::source::Content;
use crate::fault::track::Marks;
use core::ptr;

/// Pages of a chunk that are looked at ahead: more would push each other out again.
const APPROACHED: usize = 8;

/// What becomes of the pages of a chunk.
pub(super) struct Plan<'a> {
    pub(super) index: usize,
    pub(super) marks: &'a Marks,
    pub(super) present: Snapshot,
    pub(super) held: Snapshot,
    /// Written since; to be restored if they are present and stay.
    pub(super) written: Snapshot,
    /// Hot ones, which may be written.
    hot: Snapshot,
    /// Written ones that become hot.
    warm: Snapshot,
    /// To be discarded.
    pub(super) new: Snapshot,
    /// To be installed.
    pub(super) gone: Snapshot,
}

impl<'a> Plan<'a> {
    pub(super) fn of(region: &'a Region, index: usize, round: u64) -> Option<Self> {
        let (chunk, marks) = (region.tables.chunk(index)?, region.marks(index)?);
        let (present, held) = (chunk.present(), marks.held.load());
        let hot = marks.hot.load().and(&present);
        let written = marks.written.load().minus(&hot);
        let again = match marks.round.load(Ordering::Relaxed) {
            // Until the round is over, it is asked twice.
            last if last + 1 == round => marks.before.load(),
            _ => Snapshot::EMPTY,
        };
        let mut warm = Snapshot::EMPTY;
        if region.track.may_heat() {
            warm = written.and(&again).and(&present);
            if !region.source.is_ordinary() {
                // The template of those that were not there cannot be read here.
                warm = warm.and(&held);
            }
        }
        let new = present.minus(&held).minus(&hot).minus(&warm);
        let gone = held.minus(&present).and(&marks.saved.load());
        Some(Self { index, marks, present, held, written, hot, warm, new, gone })
    }

    /// Pages that stay.
    fn staying(&self) -> Snapshot {
        self.held.union(&self.warm).and(&self.present)
    }

    /// Where page `page` of the chunk is, and what the checkpoint has of it.
    fn bytes(&self, region: &Region, page: usize) -> (*mut u8, *const u8) {
        let at = region.pages_of(self.index).start + page;
        (ptr::with_exposed_provenance_mut(region.address_of(at)), region.shadow_of(at).cast_const())
    }

    /// Looks at the pages that are to be restored, as many as are worth it: those of several plans are brought
    /// near at the same time, while copying waits for each page in turn.
    ///
    /// # Safety
    /// As for [`restore`](Self::restore).
    pub(super) unsafe fn approach(&self, region: &Region) {
        let restored = self.written.and(&self.staying()).and(&self.marks.saved.load());
        for page in restored.union(&self.hot).runs().flatten().take(APPROACHED) {
            let (target, saved) = self.bytes(region, page);
            // SAFETY: both are a page; nobody writes to either.
            unsafe { (target.read_volatile(), saved.read_volatile()) };
        }
    }

    /// Writes what the checkpoint has over the pages, and takes note of that.
    ///
    /// # Safety
    /// Nobody else accesses the arena, and the caller has locked the checkpoint.
    pub(super) unsafe fn restore(&self, region: &Region, round: u64) -> Restored {
        let (marks, size) = (self.marks, 1usize << region.page_shift);
        let mut same = Snapshot::EMPTY;
        for page in self.hot.runs().flatten() {
            let (target, saved) = self.bytes(region, page);
            // SAFETY: both are a page; nobody else writes to either.
            unsafe {
                let now = core::slice::from_raw_parts(target.cast_const(), size);
                if now == core::slice::from_raw_parts(saved, size) {
                    same.insert(page..page + 1);
                } else {
                    ptr::copy_nonoverlapping(saved, target, size);
                }
            }
        }
        for page in self.warm.minus(&self.held).minus(&marks.saved.load()).runs().flatten() {
            // SAFETY: as above.
            unsafe { save_template(region, marks, region.pages_of(self.index).start, page) };
        }
        let written = self.written.and(&self.staying());
        for page in written.and(&marks.saved.load()).runs().flatten() {
            let (target, saved) = self.bytes(region, page);
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(saved, target, size) };
        }
        let hot = self.hot.minus(&same);
        let done =
            Restored { cold: written.minus(&self.warm).union(&same), hot: hot.union(&self.warm) };
        // Until they are protected.
        marks.written.add(&done.cold);
        marks.hot.assign(&done.hot);
        marks.before.assign(&self.written.union(&hot));
        marks.round.store(round, Ordering::Relaxed);
        done
    }
}

/// What came of restoring the pages of a chunk.
pub(super) struct Restored {
    /// Those that are hot now.
    pub(super) hot: Snapshot,
    /// Those that are to be protected.
    pub(super) cold: Snapshot,
}

/// Has the shadow hold what the template says of a page of the chunk that begins at page `first`.
///
/// # Safety
/// The caller has locked the checkpoint; the source is ordinary memory.
unsafe fn save_template(region: &Region, marks: &Marks, first: usize, page: usize) {
    let (at, alone) = (first + page, page..page + 1);
    let zeroes = matches!(region.source.at(at, region.page_shift), Content::Zero);
    if zeroes && !marks.stored.get(page) {
        marks.saved.set(alone);
        return;
    }
    let shadow = region.shadow_of(at);
    // SAFETY: a page of the shadow, which nobody reads now.
    unsafe {
        shadow.write_bytes(0, 1 << region.page_shift);
        region.source.write(at, 1, region.page_shift, shadow);
    }
    mark_saved(region, marks, alone);
}
