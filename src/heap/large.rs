//! Large blocks: pages of their own, which the kernel fills as they are touched. Up to a mebibyte
//! they are runs of slices, kept for a while when freed; beyond, whole chunks.

use super::class;
use super::core::{Core, EXTENTS, FIRST_RUN, Shared, kept_list};
use super::pages::{Moved, move_memory, prefer_huge, renew};
use super::span::{Kind, Span};
use super::table::{Chunk, SLICE, SLICES};
use super::territory::Territory;
use crate::atomic::Ordering;
use crate::page::{CHUNK, CHUNK_SHIFT};
use core::ops::Range;
use core::ptr;

/// The most bytes of a block that is a run of slices.
const RUN_MAX: usize = CHUNK / 2;

/// The most bytes of freed extents that are kept, and of freed runs of each length. The memory of a
/// larger block goes at once.
const KEPT_MAX: usize = 4 << 20;

/// Kept extents that are looked at for one of the right length.
const LOOKED_AT: usize = 8;

/// Blocks of these sizes are filled in huge pages: smaller ones would be rounded up too much, and larger
/// ones are often touched here and there. Not those that are to be zeroes, for that reason: tables.
const HUGE: Range<usize> = 4 << 20..1 << 30;

/// Whether blocks of this layout are whole chunks.
fn is_chunks(size: usize, align: usize) -> bool {
    size > RUN_MAX || align > SLICE
}

impl Core {
    /// A block without a class; null if there is no address space or no budget for it.
    pub(crate) fn allocate_large(&self, size: usize, align: usize, zeroed: bool) -> *mut u8 {
        let attempt = || match is_chunks(size, align) {
            true => self.take_extent(size, align, zeroed),
            false => self.take_run(size, zeroed),
        };
        let span = attempt().or_else(|| {
            self.make_room();
            attempt()
        });
        let Some(span) = span else { return ptr::null_mut() };
        self.large.allocated.fetch_add(1, Ordering::Relaxed);
        self.large_bytes.fetch_add(self.bytes(span) as u64, Ordering::Relaxed);
        self.start_of(span)
    }

    /// Bytes that are charged for a large block.
    pub(crate) fn bytes(&self, span: &Span) -> usize {
        (span.carved.get() as usize) << self.pages.shift
    }

    /// A run of slices for a block of `size` bytes.
    fn take_run(&self, size: usize, zeroed: bool) -> Option<&Span> {
        let slices = size.div_ceil(SLICE);
        let pages = self.pages.of(size);
        let mut shared = self.shared.lock();
        let kept = shared.kept_runs[slices].pop_front();
        let span = match kept.map(|span| self.table.keep(span)) {
            Some(span) => span,
            None => {
                let span = self.new_span(&mut shared, slices)?;
                span.carved.set(0);
                span
            }
        };
        let charged = span.carved.get() as usize;
        if pages > charged {
            if !self.pages.lend(pages - charged) {
                self.keep(&shared.kept_runs[slices], span);
                return None;
            }
            span.carved.set(pages as u32);
        }
        drop(shared);
        if zeroed && !span.is_clean.get() {
            // It holds what the last block held, on pages that are there: clearing them costs less than
            // having the kernel drop them and fault them in again.
            // SAFETY: the run is nobody else's, and so long.
            unsafe { self.start_of(span).write_bytes(0, size) };
        }
        span.size.set(slices as u32);
        span.kind.set(Kind::Run);
        Some(span)
    }

    /// Whole chunks for a block of `size` bytes.
    fn take_extent(&self, size: usize, align: usize, zeroed: bool) -> Option<&Span> {
        if !zeroed
            && align <= CHUNK
            && let Some(span) = self.take_kept_extent(chunks(size))
        {
            if self.pages.of(size) <= span.carved.get() as usize || self.recharge(span, size) {
                span.kind.set(Kind::Chunks);
                return Some(span);
            }
            self.keep(&self.shared.lock().kept[EXTENTS], span);
            return None;
        }
        let count = chunks(size);
        let huge = !zeroed && HUGE.contains(&size);
        let pages = self.charge_for(size, huge)?;
        if !self.pages.lend(pages as usize) {
            return None;
        }
        let taken = self.shared.lock().territory.take_chunks(count, align_chunks(align));
        let Some(first) = taken else {
            self.pages.ledger().release(0, u64::from(pages));
            return None;
        };
        let address = self.table.base + (first << CHUNK_SHIFT);
        let huge = huge && prefer_huge(address, count << CHUNK_SHIFT);
        self.table.chunk(first).is_apart.set(huge);
        self.table.chunk(first).is_huge.set(huge);
        Some(self.start_extent(first, pages))
    }

    /// Pages to charge for a block in chunks: all of them, if one touch may fill a whole one.
    fn charge_for(&self, size: usize, huge: bool) -> Option<u32> {
        let bytes = if huge { size.checked_next_multiple_of(CHUNK)? } else { size };
        u32::try_from(self.pages.of(bytes)).ok()
    }

    /// The entry of the first chunk of a block's.
    fn chunk_entry(&self, span: &Span) -> &Chunk {
        self.table.chunk(self.table.slice_of(span) / SLICES)
    }

    /// A kept extent of so many chunks, if one of the latest is.
    fn take_kept_extent(&self, count: usize) -> Option<&Span> {
        let shared = self.shared.lock();
        let fits = |span: &&Span| self.chunk_entry(span).count.get() as usize == count;
        let list = &shared.kept[EXTENTS];
        let span = list.iter().take(LOOKED_AT).find(fits)?;
        list.remove(span);
        Some(self.table.keep(span))
    }

    /// The entry of a block in the extent that begins at chunk `first`.
    fn start_extent(&self, first: usize, pages: u32) -> &Span {
        let span = self.table.span(first * SLICES);
        span.back.store(0, Ordering::Relaxed);
        span.set_owner(ptr::null());
        span.carved.set(pages);
        span.kind.set(Kind::Chunks);
        span
    }

    /// Frees a large block of `size` bytes.
    ///
    /// # Safety
    /// The span is one of a large block, which nobody uses any more.
    pub(crate) unsafe fn free_large(&self, span: &Span, size: usize) {
        self.large.freed.fetch_add(1, Ordering::Release);
        self.large_bytes.fetch_sub(self.bytes(span) as u64, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        if unsafe { self.quarantine(span, size) } {
            return;
        }
        if span.kind.get() == Kind::Run {
            let mut shared = self.shared.lock();
            let slices = span.size.get() as usize;
            self.keep(&shared.kept_runs[slices], span);
            return self.trim(&mut shared, FIRST_RUN + slices);
        }
        if self.bytes(span) <= KEPT_MAX {
            return self.keep_extent(span);
        }
        // Before the lock is taken, since it may take long: the span is still the caller's.
        self.pages.discard_lent(self.table.address_of(span), span.carved.replace(0) as usize);
        self.give_extent(&mut self.shared.lock().territory, span);
    }

    /// Keeps a freed extent.
    fn keep_extent(&self, span: &Span) {
        let mut shared = self.shared.lock();
        self.keep(&shared.kept[EXTENTS], span);
        self.trim(&mut shared, EXTENTS);
    }

    /// Gives the oldest of a list of large blocks back, if they are too much together.
    fn trim(&self, shared: &mut Shared, list: usize) {
        let mut all: usize = kept_list(shared, list).iter().map(|span| self.bytes(span)).sum();
        while all > KEPT_MAX
            && let Some(oldest) = kept_list(shared, list).last()
        {
            let oldest = self.table.keep(oldest);
            all -= self.bytes(oldest);
            self.give_back(shared, list, oldest);
        }
        self.give_aged(shared);
    }

    /// The first byte of a large block.
    fn start_of(&self, span: &Span) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.table.address_of(span))
    }

    /// Gives the chunks of a block back, and what is behind them.
    pub(crate) fn give_extent(&self, territory: &mut Territory, span: &Span) {
        self.pages.discard_lent(self.table.address_of(span), span.carved.get() as usize);
        let first = self.table.slice_of(span) / SLICES;
        let entry = self.table.chunk(first);
        let count = entry.count.get() as usize;
        entry.is_huge.set(false);
        if entry.is_apart.replace(false) {
            renew(self.table.address_of(span), count << CHUNK_SHIFT);
        }
        span.kind.set(Kind::None);
        territory.give_chunks(first, count);
    }

    /// Makes a large block one of `size` bytes without copying it, where it is or elsewhere; null,
    /// and nothing changed, if that cannot be.
    ///
    /// # Safety
    /// The span is one of a large block, whose owner gives the old address up for the new one.
    pub(crate) unsafe fn resize_large(&self, span: &Span, size: usize, align: usize) -> *mut u8 {
        if class::for_layout(size, align).is_some() {
            return ptr::null_mut();
        }
        let before = self.bytes(span);
        let resized = match span.kind.get() {
            Kind::Run if is_chunks(size, align) => None,
            Kind::Run => self.resize_run(span, size),
            _ if !is_chunks(size, align) => None,
            _ => self.resize_extent(span, size).or_else(|| self.move_extent(span, size, align)),
        };
        let Some(span) = resized else { return ptr::null_mut() };
        let change = self.bytes(span).wrapping_sub(before) as u64;
        self.large_bytes.fetch_add(change, Ordering::Relaxed);
        self.start_of(span)
    }

    /// Leaves a block of `before` bytes where it is that is to be of `size` bytes, because there is no
    /// memory for another, if it has room for them: nobody expects that a block cannot be made smaller.
    /// What a large one does not need any more goes to others.
    pub(crate) fn stays(&self, span: &Span, size: usize, before: usize) -> bool {
        let is_small = span.kind.get() == Kind::Blocks;
        let fits = size <= if is_small { span.size.get() as usize } else { before };
        if fits {
            // Relaxed: whoever frees the block has got it from here.
            self.stayed.store(true, Ordering::Relaxed);
        }
        if fits && !is_small {
            let before = self.bytes(span);
            self.recharge(span, size);
            let less = before - self.bytes(span);
            self.large_bytes.fetch_sub(less as u64, Ordering::Relaxed);
        }
        fits
    }

    /// In its slices.
    fn resize_run<'a>(&'a self, span: &Span, size: usize) -> Option<&'a Span> {
        let fits = size <= span.size.get() as usize * SLICE;
        (fits && self.recharge(span, size)).then(|| self.table.keep(span))
    }

    /// In its chunks, or with those after them.
    fn resize_extent<'a>(&'a self, span: &Span, size: usize) -> Option<&'a Span> {
        let first = self.table.slice_of(span) / SLICES;
        let (now, wanted) = (self.table.chunk(first).count.get() as usize, chunks(size));
        let apart = self.table.chunk(first).is_apart.get();
        if wanted > now && (apart || HUGE.contains(&size)) {
            // The kernel would see two mappings, which cannot be moved together.
            return None;
        }
        let resize =
            |shared: &mut Shared, from, to| from == to || shared.territory.resize(first, from, to);
        if wanted < now {
            self.recharge(span, size);
            if apart {
                let rest = self.table.address_of(span) + (wanted << CHUNK_SHIFT);
                renew(rest, (now - wanted) << CHUNK_SHIFT);
            }
        }
        if !resize(&mut self.shared.lock(), now, wanted) {
            return None;
        }
        if wanted >= now && !self.recharge(span, size) {
            resize(&mut self.shared.lock(), wanted, now);
            return None;
        }
        Some(self.table.keep(span))
    }

    /// Charges a block for `size` bytes: more, if the budget has them, or less, what is behind the
    /// rest being dropped.
    fn recharge(&self, span: &Span, size: usize) -> bool {
        let huge = span.kind.get() != Kind::Run && self.chunk_entry(span).is_huge.get();
        let (before, Some(after)) = (span.carved.get(), self.charge_for(size, huge)) else {
            return false;
        };
        if after > before && !self.lend((after - before) as usize) {
            return false;
        }
        if after < before {
            let end = self.table.address_of(span) + ((after as usize) << self.pages.shift);
            self.pages.discard_lent(end, (before - after) as usize);
        }
        span.carved.set(after);
        true
    }

    /// Charges pages for a block that grows, if need be after everything that is unused was given back.
    fn lend(&self, pages: usize) -> bool {
        self.pages.lend(pages) || {
            self.make_room();
            self.pages.lend(pages)
        }
    }

    /// In other chunks, with the pages moved there.
    fn move_extent(&self, span: &Span, size: usize, align: usize) -> Option<&Span> {
        let before = span.carved.get();
        let entry = self.chunk_entry(span);
        // What grows is filled from its start to its end.
        let entry_was_huge = entry.is_huge.get();
        let huge = entry_was_huge || HUGE.contains(&size);
        let more = self.charge_for(size, huge)?.checked_sub(before)?;
        if !self.lend(more as usize) {
            return None;
        }
        let taken = self.shared.lock().territory.take_chunks(chunks(size), align_chunks(align));
        let moved = taken.map(|first| (first, self.move_to(span, first, chunks(size))));
        let Some((first, Moved::There | Moved::SourceLost)) = moved else {
            self.pages.ledger().release(0, u64::from(more));
            // Address space that was lost is never given out again.
            if let Some((first, Moved::Not)) = moved {
                self.shared.lock().territory.give_chunks(first, chunks(size));
            }
            return None;
        };
        // The memory and its charge are the new block's.
        span.carved.set(0);
        entry.is_apart.set(false);
        // Who goes on using the old address is as wrong as who uses a freed block.
        // SAFETY: nothing is left there, as the caller of `resize_large` promises.
        let leaves = matches!(moved, Some((_, Moved::There)))
            && !unsafe { self.quarantine(span, (before as usize) << self.pages.shift) };
        if leaves {
            self.give_extent(&mut self.shared.lock().territory, span);
        }
        self.table.chunk(first).is_apart.set(true);
        let target = self.table.base + (first << CHUNK_SHIFT);
        let huge = huge && (entry_was_huge || prefer_huge(target, chunks(size) << CHUNK_SHIFT));
        self.table.chunk(first).is_huge.set(huge);
        Some(self.start_extent(first, before + more))
    }

    /// Moves the memory of a block to the `count` chunks from `first` on.
    fn move_to(&self, span: &Span, first: usize, count: usize) -> Moved {
        let extent = self.chunk_entry(span).count.get() as usize;
        let target = self.table.base + (first << CHUNK_SHIFT);
        let from = self.table.address_of(span);
        move_memory(from, extent << CHUNK_SHIFT, target, count << CHUNK_SHIFT)
    }
}

/// Chunks for so many bytes.
fn chunks(size: usize) -> usize {
    size.div_ceil(CHUNK)
}

/// An alignment in chunks.
fn align_chunks(align: usize) -> usize {
    (align / CHUNK).max(1)
}
