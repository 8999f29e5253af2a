//! The per-chunk tables of an arena, side by side in one mapping that the kernel fills as they are
//! touched:
//!
//! ```text
//!  | summary, 3 levels | lent chunks, a bit each | states, 4 bytes each | resident, 64 | lent, 64 |
//! ```
//! About 0.003 % of what is present, twice that where pages are lent.

use super::bits::{PageBits, Snapshot};
use super::chunk::ChunkState;
use super::summary::{self, Summary};
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
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
        Self {
            chunks,
            lent_chunks,
            states,
            resident,
            lent,
            size: lent + chunks * size_of::<PageBits>(),
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
    any_lent: &'a AtomicU32,
}

impl Tables {
    /// Tables at `base`.
    ///
    /// # Safety
    /// `base` points to `layout.size` zeroed bytes, aligned to 64, that nobody else uses and that
    /// outlive the value.
    pub(crate) unsafe fn new(base: NonNull<u8>, layout: Layout) -> Self {
        Self { base, layout, any_lent: AtomicU32::new(0) }
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
                any_lent: &self.any_lent,
            })
        }
    }
}

impl Chunk<'_> {
    /// The lent pages, once any page of the arena was.
    pub(crate) fn lent(&self) -> Option<&PageBits> {
        // Relaxed: whoever must see each lent page owns the chunk, and its claim is ordered after
        // the filler that set the flag; to anybody else the page was lent a moment later.
        (self.any_lent.load(Ordering::Relaxed) != 0).then_some(self.lent)
    }

    /// The lent pages, to set some of them.
    pub(crate) fn lend(&self) -> &PageBits {
        if self.any_lent.load(Ordering::Relaxed) == 0 {
            self.any_lent.store(1, Ordering::Relaxed);
        }
        self.lent
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
    fn tables_do_not_overlap() {
        for chunks in [1, 2, 63, 64, 65, 4095, 4096, 4097, 1 << 25] {
            let layout = Layout::new(chunks);
            let summary = summary::words(chunks).iter().sum::<usize>() * 8;
            assert!(summary <= layout.lent_chunks);
            assert!(layout.lent_chunks + 8 * chunks.div_ceil(64) <= layout.states);
            assert!(layout.states + 4 * chunks <= layout.resident);
            assert!(layout.resident.is_multiple_of(64));
            assert_eq!(layout.resident + 64 * chunks, layout.lent);
            assert_eq!(layout.lent + 64 * chunks, layout.size);
        }
    }
}
