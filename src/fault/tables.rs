//! The per-chunk tables of an arena, side by side in one mapping that the kernel fills as they are
//! touched:
//!
//! ```text
//!  | summary, 3 levels | lent chunks, a bit each | states, 4 bytes each | resident, 64 | lent, 64 | poisoned, 64 |
//! ```
//! About 0.003 % of what is present, twice that where pages are lent; as much again of what is poisoned.

use super::bits::{BITS, PageBits, Snapshot};
use super::chunk::ChunkState;
use super::summary::{self, Summary};
use crate::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sys::pause;
use core::ops::Range;
use core::ptr::NonNull;
use core::slice;

/// Byte offsets of the tables for a number of chunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    chunks: usize,
    lent_chunks: usize,
    states: usize,
    resident: usize,
    lent: usize,
    poisoned: usize,
    /// Bytes in all.
    pub(crate) size: usize,
}

impl Layout {
    /// The layout for `chunks` chunks, at most those of the address space.
    #[allow(clippy::arithmetic_side_effects, reason = "runs when an arena is made, and fits")]
    pub(crate) fn new(chunks: usize) -> Self {
        let words: usize = summary::words(chunks).iter().sum();
        let lent_chunks = words * size_of::<AtomicU64>();
        let states = lent_chunks + chunks.div_ceil(64) * size_of::<AtomicU64>();
        let resident = (states + chunks * size_of::<ChunkState>()).next_multiple_of(64);
        let lent = resident + chunks * size_of::<PageBits>();
        let poisoned = lent + chunks * size_of::<PageBits>();
        Self {
            chunks,
            lent_chunks,
            states,
            resident,
            lent,
            poisoned,
            size: poisoned + chunks * size_of::<PageBits>(),
        }
    }
}

/// The tables of one arena.
pub(crate) struct Tables {
    base: NonNull<u8>,
    layout: Layout,
    /// 1 once a page of this arena was lent: until then the lent bits need not be read, which
    /// saves the memory that reading them would cost.
    any_lent: AtomicU32,
    /// Pages that are poisoned.
    poisoned: AtomicUsize,
}

// SAFETY: the memory behind `base` is atomics, owned by this value alone.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}

/// One chunk's part of the tables.
#[derive(Clone, Copy)]
pub(crate) struct Chunk<'a> {
    pub(crate) index: usize,
    pub(crate) state: &'a ChunkState,
    pub(crate) resident: &'a PageBits,
    lent: &'a PageBits,
    /// For what is rarely needed: this value lies in the handler's frame.
    tables: &'a Tables,
}

impl Tables {
    /// Tables at `base`.
    ///
    /// # Safety
    /// `base` points to `layout.size` zeroed bytes, aligned to 64, that nobody else uses and that
    /// outlive the value.
    pub(crate) unsafe fn new(base: NonNull<u8>, layout: Layout) -> Self {
        Self { base, layout, any_lent: AtomicU32::new(0), poisoned: AtomicUsize::new(0) }
    }

    /// How many chunks there are.
    pub(crate) fn chunks(&self) -> usize {
        self.layout.chunks
    }

    pub(crate) fn summary(&self) -> Summary<'_> {
        let [leaf, middle, top] = summary::words(self.layout.chunks);
        let base = self.base.cast::<AtomicU64>().as_ptr();
        // SAFETY: the layout has room for the three levels at its start; zeroes are valid atomics;
        // the memory lives as long as `self`.
        unsafe {
            Summary {
                levels: [
                    slice::from_raw_parts(base, leaf),
                    slice::from_raw_parts(base.add(leaf), middle),
                    slice::from_raw_parts(base.add(leaf).add(middle), top),
                ],
            }
        }
    }

    /// Takes note that the kernel has emptied the memory, as it does in a forked child.
    pub(crate) fn start_anew(&self) {
        // Relaxed: no other thread is left.
        self.any_lent.store(0, Ordering::Relaxed);
        self.poisoned.store(0, Ordering::Relaxed);
    }

    /// How many pages are poisoned.
    pub(crate) fn count_poisoned(&self) -> usize {
        // Relaxed: statistics.
        self.poisoned.load(Ordering::Relaxed)
    }

    /// A bit for each chunk that is lent.
    pub(crate) fn lent_chunks(&self) -> &[AtomicU64] {
        let words = self.layout.chunks.div_ceil(64);
        // SAFETY: as in `summary`.
        unsafe {
            let start = self.base.as_ptr().add(self.layout.lent_chunks);
            slice::from_raw_parts(start.cast::<AtomicU64>(), words)
        }
    }

    pub(crate) fn chunk(&self, index: usize) -> Option<Chunk<'_>> {
        if index >= self.layout.chunks {
            return None;
        }
        let base = self.base.as_ptr();
        // SAFETY: the index is within each table, the tables within the memory; zeroes are valid
        // states and bits; the memory lives as long as `self`.
        unsafe {
            Some(Chunk {
                index,
                state: &*base.add(self.layout.states).cast::<ChunkState>().add(index),
                resident: &*base.add(self.layout.resident).cast::<PageBits>().add(index),
                lent: &*base.add(self.layout.lent).cast::<PageBits>().add(index),
                tables: self,
            })
        }
    }
}

impl Chunk<'_> {
    /// The lent pages, once any page of the arena was.
    pub(crate) fn lent(&self) -> Option<&PageBits> {
        // Relaxed: whoever must see each lent page owns the chunk, and its claim is ordered after
        // the filler that set the flag; to anybody else the page was lent a moment later.
        (self.tables.any_lent.load(Ordering::Relaxed) != 0).then_some(self.lent)
    }

    /// The lent pages, to set some of them.
    pub(crate) fn lend(&self) -> &PageBits {
        if self.tables.any_lent.load(Ordering::Relaxed) == 0 {
            self.tables.any_lent.store(1, Ordering::Relaxed);
        }
        self.lent
    }

    /// The poisoned pages. Read only where the state says that there are some, which saves the memory that
    /// reading costs.
    pub(crate) fn poisoned(&self) -> Snapshot {
        match self.state.is_poisoned() {
            true => self.poison_bits().load(),
            false => Snapshot::EMPTY,
        }
    }

    /// Whether page `page` is poisoned.
    pub(crate) fn is_poisoned(&self, page: usize) -> bool {
        self.state.is_poisoned() && self.poison_bits().get(page)
    }

    fn poison_bits(&self) -> &PageBits {
        // SAFETY: as in `Tables::chunk`, which has checked the index.
        unsafe {
            let bits = self.tables.base.as_ptr().add(self.tables.layout.poisoned);
            &*bits.cast::<PageBits>().add(self.index)
        }
    }

    /// Poisons `pages`, as the chunk's owner.
    pub(crate) fn poison(&self, pages: Range<usize>) {
        // Relaxed: statistics.
        self.tables.poisoned.fetch_add(self.poison_bits().set(pages), Ordering::Relaxed);
        self.state.set_poisoned(true);
    }

    /// Lifts the poison of `pages`, as the chunk's owner.
    pub(crate) fn unpoison(&self, pages: Range<usize>) {
        if self.state.is_poisoned() {
            let bits = self.poison_bits();
            self.tables.poisoned.fetch_sub(bits.clear(pages), Ordering::Relaxed);
            self.state.set_poisoned(!bits.load().is_empty());
        }
    }

    /// Becomes the chunk's owner, once its fillers have left; false if it has one. Its state's
    /// [`release`](ChunkState::release) ends it.
    #[inline(always)]
    pub(crate) fn own(&self) -> bool {
        self.state.claim() && {
            self.await_fillers();
            true
        }
    }

    /// Waits until the fillers have left a chunk that this thread has claimed.
    #[inline(always)]
    pub(crate) fn await_fillers(&self) {
        while !self.state.is_quiet() {
            pause(1_000);
        }
    }

    /// Whether page `page` is present.
    pub(crate) fn is_present(&self, page: usize) -> bool {
        self.resident.get(page) || self.lent().is_some_and(|lent| lent.get(page))
    }

    /// How many of the first `pages` pages are present without a gap, from the start. Word by word,
    /// as the next: they are called deep in the handler, where a snapshot is much stack.
    pub(crate) fn run_at_start(&self, pages: usize) -> usize {
        let mut run = 0usize;
        while run < pages {
            let ones = self.word(run / 64).trailing_ones() as usize;
            run = run.wrapping_add(ones);
            if ones < 64 {
                break;
            }
        }
        run.min(pages)
    }

    /// How many of the first `pages` pages are present without a gap, at the end.
    pub(crate) fn run_at_end(&self, pages: usize) -> usize {
        let mut end = pages;
        while end > 0 {
            let inside = end.wrapping_sub(1) % 64;
            let word = self.word(end.wrapping_sub(1) / 64) << 63usize.wrapping_sub(inside);
            let ones = word.leading_ones() as usize;
            end = end.saturating_sub(ones);
            if ones <= inside {
                break;
            }
        }
        pages.saturating_sub(end)
    }

    /// How many pages are present.
    pub(crate) fn count_present(&self) -> usize {
        let count = |index| self.word(index).count_ones() as usize;
        (0..BITS / 64).map(count).fold(0, usize::wrapping_add)
    }

    /// Makes the absent ones among the first `pages` pages lent; tells how many they were.
    pub(crate) fn lend_absent(&self, pages: usize) -> usize {
        let before = self.count_present();
        let lent = self.lend();
        for index in 0..BITS / 64 {
            lent.set_in_word(index, !self.resident.word(index), pages);
        }
        self.count_present().wrapping_sub(before)
    }

    /// The bits of 64 pages.
    fn word(&self, index: usize) -> u64 {
        self.resident.word(index) | self.lent().map_or(0, |lent| lent.word(index))
    }

    /// The pages that are present, resident or lent.
    pub(crate) fn present(&self) -> Snapshot {
        let resident = self.resident.load();
        match self.lent() {
            Some(lent) => resident.union(&lent.load()),
            None => resident,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_counted_at_both_ends() {
        let layout = Layout::new(1);
        let mut memory = vec![0u128; layout.size.div_ceil(16) + 4];
        let start = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: the memory is zeroed, long enough from its first multiple of 64 on, and outlives
        // the tables.
        let tables = unsafe {
            Tables::new(NonNull::new_unchecked(start.add(start.align_offset(64))), layout)
        };
        let chunk = tables.chunk(0).unwrap();
        for pages in [512, 128, 32, 1] {
            for run in [0, 1, 31, 32, 63, 64, 65, 127, 128, 500, 511, 512] {
                chunk.resident.clear(0..512);
                chunk.resident.set(0..run);
                assert_eq!(chunk.run_at_start(pages), run.min(pages), "{run} of {pages}");
                let at_end = if run >= pages { pages } else { 0 };
                assert_eq!(chunk.run_at_end(pages), at_end, "{run} of {pages}");
                chunk.resident.clear(0..512);
                chunk.lend().set(pages.saturating_sub(run)..pages);
                assert_eq!(chunk.run_at_end(pages), run.min(pages), "last {run} of {pages}");
                chunk.lend().clear(0..512);
            }
        }
    }

    #[test]
    fn tables_do_not_overlap() {
        for chunks in [1, 2, 63, 64, 65, 4095, 4096, 4097, 1 << 25] {
            let layout = Layout::new(chunks);
            let summary = summary::words(chunks).iter().sum::<usize>() * 8;
            assert!(summary <= layout.lent_chunks);
            assert!(layout.lent_chunks + 8 * chunks.div_ceil(64) <= layout.states);
            assert!(layout.states + 4 * chunks <= layout.resident);
            assert!(layout.resident.is_multiple_of(64));
            assert_eq!(layout.resident + 64 * chunks, layout.lent);
            assert_eq!(layout.lent + 64 * chunks, layout.poisoned);
            assert_eq!(layout.poisoned + 64 * chunks, layout.size);
        }
    }
}
