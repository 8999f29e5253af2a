//! Coming back to the template: some pages restored in place, the others given back.

use super::{Arena, inherit};
use crate::atomic::Ordering;
use crate::error::{Operation, Result};
use crate::fault::bits::Snapshot;
use crate::fault::lend;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::source::Content;
use crate::fault::tables::Chunk;
use core::ops::Range;
use core::ptr;
use core::slice;

impl Arena {
    /// Brings everything back to the template. It costs in proportion to what is present.
    ///
    /// Without [`keep_resident`](super::ArenaBuilder::keep_resident) it is a
    /// [`discard`](Self::discard) of the whole arena. With it, so many bytes of what is present, from
    /// the start of the arena on, keep their memory and get the template's content written over what
    /// they hold, which is many times faster than giving them back and faulting them in again: no
    /// fault, no system call, no flush of any processor's TLB. The rest is discarded, and so are
    /// pages past the limit and those that the kernel filled by itself (`lent_bytes`). With a
    /// [shared](super::Template::shared) image, pages that were only read count as kept too: they are
    /// compared with the image, and restored if they were written since; and chunks of it that are lent
    /// stay lent and charged as a whole, and are emptied. They are lent only once most of the pages that
    /// were kept had not been written before the next reset.
    ///
    /// # Errors
    /// As for [`discard`](Self::discard).
    ///
    /// # Safety
    /// As for [`discard`](Self::discard), of the whole arena; and with `keep_resident`, nobody else
    /// may access the arena meanwhile.
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30)
    ///     .template(lacuna::Template::repeat(&7u8)?)
    ///     .keep_resident(64 << 10)
    ///     .reserve()?;
    /// // SAFETY: the first byte is the arena's, and nobody holds a reference to it.
    /// unsafe {
    ///     arena.as_ptr().write(1);
    ///     arena.reset()?;
    ///     assert_eq!(arena.as_ptr().read(), 7);
    /// }
    /// assert_eq!(arena.stats().faults, 1);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub unsafe fn reset(&self) -> Result<()> {
        inherit::check(Operation::Discard)?;
        let region = self.region();
        // SAFETY: as the caller promises.
        unsafe {
            let restored = self.restore()?;
            match lends_image(region) {
                true => self.discard_after(&restored),
                false => self.discard(restored.end << region.page_shift..self.len()),
            }
        }
    }

    /// Discards what was not restored of an arena that may lend chunks of a shared image. What is lent
    /// stays so: the kernel fills it with the image again, and taking it back would cost more than the
    /// signals that were saved.
    ///
    /// # Safety
    /// As for `reset`.
    unsafe fn discard_after(&self, restored: &Restored) -> Result<()> {
        let region = self.region();
        if self.has_lent_for_long() {
            region.scattered.store(0, Ordering::Relaxed);
            // SAFETY: as the caller promises.
            return unsafe { self.discard(0..self.len()) };
        }
        let mut from = restored.end;
        if restored.idle > restored.used.max(FEW_IDLE) {
            // Kept for nothing: other pages are needed each time, and it is the kernel's faults that
            // are cheapest. Relaxed: a hint.
            region.scattered.store(1, Ordering::Relaxed);
            from = 0;
        }
        let mut chunk = 0;
        while let Some(run) = next_lent_run(region, chunk) {
            let first = region.pages_of(run.start).start;
            chunk = run.end;
            if from < first {
                // SAFETY: as the caller promises.
                unsafe { self.discard(from << region.page_shift..first << region.page_shift)? };
            }
            self.empty_lent(run)?;
            from = from.max(region.pages_of(chunk - 1).end);
        }
        // SAFETY: as the caller promises.
        unsafe { self.discard(from << region.page_shift..self.len()) }
    }

    /// Whether it is time to see whether the same pages are needed each time by now, which would make
    /// keeping them better than lending.
    fn has_lent_for_long(&self) -> bool {
        let lends = self.keep_resident > 0 && lend::next_lent_from(self.region(), 0).is_some();
        // Relaxed: a count of the one thread that resets.
        let now = self.resets.load(Ordering::Relaxed);
        let is_time = lends && now >= LENT_RESETS;
        self.resets.store(if is_time || !lends { 0 } else { now + 1 }, Ordering::Relaxed);
        is_time
    }

    /// Restores pages in place, as many as are to be kept, and discards those among them that cannot
    /// be.
    ///
    /// # Safety
    /// As for `reset`.
    unsafe fn restore(&self) -> Result<Restored> {
        let mut allowed = self.keep_resident;
        let mut from = 0;
        let mut restored = Restored::default();
        while let Some(index) = self.region().tables.summary().next(from) {
            if allowed == 0 {
                break;
            }
            // Nobody else accesses the arena, so what is present now is all that is to be restored; the
            // chunk need not be entered for that, which would take two system calls. Nor may it be: should
            // a page have been dropped behind our back, touching it faults, and that must not happen to a
            // thread that a fork waits for.
            let Some(chunk) = self.region().tables.chunk(index) else { break };
            let lends = lends_image(self.region());
            if lends && chunk.state.is_lent() {
                from = index + 1;
                continue;
            }
            let plan = Plan::of(self.region(), &chunk, allowed);
            let pages = self.region().pages_of(index);
            // SAFETY: nobody else accesses the pages.
            unsafe {
                match lends {
                    true => restored.restore(self.region(), pages.start, &plan.kept),
                    false => write_template(self.region(), pages.start, &plan.kept),
                }
                self.restore_common(index, &plan.common);
            }
            self.discard_set(pages.start, &plan.lent)?;
            if plan.end < pages.len() {
                restored.end = pages.start + plan.end;
                return Ok(restored);
            }
            allowed -= plan.pages;
            from = index + 1;
        }
        restored.end = self.region().pages_of(from).start.min(self.region().pages);
        Ok(restored)
    }

    /// Restores those of some lent pages of a chunk that were written: they are memory now.
    ///
    /// # Safety
    /// They are present, and nobody else accesses them.
    unsafe fn restore_common(&self, index: usize, pages: &Snapshot) {
        let region = self.region();
        let first = region.pages_of(index).start;
        let mut written = Snapshot::EMPTY;
        for page in members(pages, region.chunk_pages()) {
            // SAFETY: as the caller promises.
            if unsafe { !is_template(region, first + page) } {
                written.insert(page..page + 1);
            }
        }
        if written.is_empty() {
            return;
        }
        // SAFETY: as the caller promises.
        unsafe { write_template(region, first, &written) };
        let _blocked = SignalsBlocked::new();
        self.as_filler(index, |region, chunk| {
            // Those that somebody has found to be memory meanwhile, or discarded, are lent no more.
            let of_ours = members(&written, region.chunk_pages());
            for page in of_ours.filter(|page| chunk.lend().get(*page)) {
                chunk.resident.set(page..page + 1);
                region.ledger.convert(u64::from(chunk.lend().clear_one(page)));
            }
        });
    }

    /// Discards a set of pages of the chunk that begins at page `first`.
    fn discard_set(&self, first: usize, pages: &Snapshot) -> Result<()> {
        let count = self.region().chunk_pages();
        let shift = self.region().page_shift;
        let mut start = pages.next_set(0..count);
        while start < count {
            let end = pages.next_clear(start..count);
            // SAFETY: as the caller of `reset` promises.
            unsafe { self.discard((first + start) << shift..(first + end) << shift)? };
            start = pages.next_set(end..count);
        }
        Ok(())
    }
}

/// Kept pages that may go unused without a thought: looking at them costs next to nothing.
const FEW_IDLE: usize = 16;

/// Resets after which lent chunks of a shared image are taken back, to learn anew: a hundredth of what
/// their faults cost meanwhile.
const LENT_RESETS: u32 = 1024;

/// Whether chunks of a shared image may be lent.
fn lends_image(region: &Region) -> bool {
    region.lends && region.source.shared_pages() > 0
}

/// The first lent chunks side by side at or after chunk `from`.
fn next_lent_run(region: &Region, from: usize) -> Option<Range<usize>> {
    let is_lent =
        |index: &usize| region.tables.chunk(*index).is_some_and(|chunk| chunk.state.is_lent());
    let mut first = lend::next_lent_from(region, from)?;
    // A mark may be left of a chunk that was taken back.
    while !is_lent(&first) {
        first = lend::next_lent_from(region, first + 1)?;
    }
    let end = (first + 1..).find(|index| !is_lent(index))?;
    Some(first..end)
}

/// What came of restoring pages in place.
#[derive(Default)]
struct Restored {
    /// Up to which page.
    end: usize,
    /// Kept pages that had been written since, and those that had not.
    used: usize,
    idle: usize,
}

impl Restored {
    /// Restores those of `pages`, of the chunk that begins at page `first`, that were written.
    ///
    /// # Safety
    /// They are present, and nobody else accesses them.
    unsafe fn restore(&mut self, region: &Region, first: usize, pages: &Snapshot) {
        for page in members(pages, region.chunk_pages()) {
            // SAFETY: as the caller promises.
            unsafe {
                match is_template(region, first + page) {
                    true => self.idle += 1,
                    false => {
                        self.used += 1;
                        write_page(region, first + page);
                    }
                }
            }
        }
    }
}

/// What becomes of the first pages of a chunk.
struct Plan {
    /// Pages to restore.
    kept: Snapshot,
    /// Lent pages, of an arena that shares its image, to restore if they were written.
    common: Snapshot,
    /// How many these are.
    pages: usize,
    /// How far it comes, in pages of the chunk.
    end: usize,
    /// Pages before that which the kernel may have filled by itself: what they hold is not known.
    lent: Snapshot,
}

impl Plan {
    /// Keeps at most `allowed` present pages of a chunk within the limit, from its first on: resident
    /// ones, and, in an arena that shares its image, those that are lent by themselves. To look at such
    /// a page costs a tenth of having it back; elsewhere they are too few to matter.
    fn of(region: &Region, chunk: &Chunk<'_>, allowed: usize) -> Self {
        let whole = region.pages_of(chunk.index);
        let resident = chunk.resident.load();
        let lent = chunk.lent().map_or(Snapshot::EMPTY, |lent| lent.load());
        let looks = region.source.shared_pages() > 0 && !chunk.state.is_lent();
        let wanted = if looks { resident.union(&lent) } else { resident };
        let limit = region.limit().clamp(whole.start, whole.end) - whole.start;
        let (mut pages, mut end) = (0, 0);
        while pages < allowed {
            let start = wanted.next_set(end..limit);
            end = wanted.next_clear(start..limit).min(start + (allowed - pages));
            if start == end {
                break;
            }
            pages += end - start;
        }
        let (kept, lent) = (resident.before(end), lent.before(end));
        let (common, lent) = if looks { (lent, Snapshot::EMPTY) } else { (Snapshot::EMPTY, lent) };
        Self { kept, common, pages, end, lent }
    }
}

/// The pages of a set, in order.
fn members(pages: &Snapshot, count: usize) -> impl Iterator<Item = usize> {
    let next = move |from: usize| Some(pages.next_set(from..count)).filter(|page| *page < count);
    core::iter::successors(next(0), move |page| next(page + 1))
}

/// Whether a page holds what the template says.
///
/// # Safety
/// It is present, and nobody else accesses it; the template is ordinary memory.
unsafe fn is_template(region: &Region, page: usize) -> bool {
    let size = 1 << region.page_shift;
    let start: *const u8 = ptr::with_exposed_provenance(region.address_of(page));
    // SAFETY: as the caller promises.
    let bytes = unsafe { slice::from_raw_parts(start, size) };
    match region.source.at(page, region.page_shift) {
        // SAFETY: the template has whole pages.
        Content::Bytes { from, .. } | Content::Shared { from, .. } => unsafe {
            bytes == slice::from_raw_parts(from, size)
        },
        Content::Zero | Content::Hole { .. } | Content::SharedHole { .. } => is_zero(bytes),
        Content::Generated => false,
    }
}

/// Whether all bytes are zeroes, by a comparison that the compiler does many bytes at a time.
fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|part| part.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Writes the template's content over `pages` of the chunk that begins at page `first`.
///
/// # Safety
/// They are present, and nobody else accesses them.
unsafe fn write_template(region: &Region, first: usize, pages: &Snapshot) {
    for page in members(pages, region.chunk_pages()) {
        // SAFETY: as the caller promises.
        unsafe { write_page(region, first + page) };
    }
}

/// Writes the template's content over a page.
///
/// # Safety
/// It is present, and nobody else accesses it.
unsafe fn write_page(region: &Region, page: usize) {
    let shift = region.page_shift;
    let target: *mut u8 = ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: as the caller promises; the source is ordinary memory, or nothing is kept.
    unsafe {
        match region.source.at(page, shift) {
            Content::Bytes { from, .. } | Content::Shared { from, .. } => {
                ptr::copy_nonoverlapping(from, target, 1 << shift);
            }
            Content::Zero | Content::Hole { .. } | Content::SharedHole { .. } => {
                target.write_bytes(0, 1 << shift);
            }
            Content::Generated => {
                target.write_bytes(0, 1 << shift);
                region.source.write(page, 1, shift, target);
            }
        }
    }
}
