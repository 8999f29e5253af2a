//! From an address to what is known of it: one entry for each slice of the territory, one for each
//! chunk, in memory that the kernel fills as it is used.

use super::list::{Linked, Links};
use super::span::Span;
use crate::page::CHUNK;
use core::cell::Cell;
use core::sync::atomic::Ordering;

/// Bytes of a slice: the unit in which address space is given to spans.
pub(crate) const SLICE: usize = 1 << SLICE_SHIFT;
pub(crate) const SLICE_SHIFT: u32 = 16;

/// Slices of a chunk; a word has a bit for each.
pub(crate) const SLICES: usize = CHUNK / SLICE;

const _: () = assert!(SLICES == u32::BITS as usize);

/// What a chunk is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Use {
    /// It is within an extent, neither its first nor its last chunk, or was never used. Zero, so that
    /// fresh memory says so.
    Inside = 0,
    /// The first or the last chunk of free ones.
    Free,
    /// The first or the last chunk of a block's.
    Taken,
    /// Given out by slices.
    Sliced,
}

/// What is known of a chunk; all of it belongs to whoever holds the heap's lock.
pub(crate) struct Chunk {
    /// A bit for each free slice, if it is sliced.
    pub(crate) free: Cell<u32>,
    /// Chunks of the extent that begins or ends here.
    pub(crate) count: Cell<u32>,
    pub(crate) used: Cell<Use>,
    /// Whether the extent that begins here is a mapping of its own to the kernel: memory of another
    /// place was moved here, or may come in huge pages.
    pub(crate) is_apart: Cell<bool>,
    /// Whether memory may come in huge pages here.
    pub(crate) is_huge: Cell<bool>,
    pub(crate) links: Links<Chunk>,
}

impl Linked for Chunk {
    fn links(&self) -> &Links<Self> {
        &self.links
    }
}

/// The tables of a heap.
#[derive(Clone, Copy)]
pub(crate) struct Table {
    /// First byte of the territory, aligned to a chunk.
    pub(crate) base: usize,
    /// Chunks of the territory.
    pub(crate) chunks: usize,
    spans: *const Span,
    chunk_entries: *const Chunk,
}

impl Table {
    /// Bytes of the tables for so many chunks.
    pub(crate) const fn size(chunks: usize) -> usize {
        chunks * (SLICES * size_of::<Span>() + size_of::<Chunk>())
    }

    /// Tables in the memory at `at`, for the territory at `base`.
    ///
    /// # Safety
    /// The memory is zeroed, aligned to 64, as large as [`size`](Self::size) says, nobody else's,
    /// and outlives every copy of the value.
    pub(crate) unsafe fn new(base: usize, chunks: usize, at: *mut u8) -> Self {
        let spans = at.cast_const().cast::<Span>();
        // SAFETY: the spans are the first part of the memory.
        let chunk_entries = unsafe { spans.add(chunks * SLICES) }.cast::<Chunk>();
        Self { base, chunks, spans, chunk_entries }
    }

    /// The entry of a slice.
    pub(crate) fn span(&self, slice: usize) -> &Span {
        debug_assert!(slice < self.chunks * SLICES);
        // SAFETY: the slice is one of the territory's; zeroes are a valid entry; the memory outlives
        // the value.
        unsafe { &*self.spans.add(slice) }
    }

    /// The span that an address of a block lies in.
    ///
    /// # Safety
    /// The address lies in a span.
    #[inline]
    pub(crate) unsafe fn span_of(&self, address: usize) -> &Span {
        let slice = address.wrapping_sub(self.base) >> SLICE_SHIFT;
        // SAFETY: the slice is one of a span's, and so is the one that many before it.
        unsafe {
            let entry = &*self.spans.add(slice);
            // Relaxed: written before any block of the span was handed out.
            &*self.spans.add(slice - usize::from(entry.back.load(Ordering::Relaxed)))
        }
    }

    /// The same entry, for as long as the table.
    pub(crate) fn keep(&self, span: &Span) -> &Span {
        self.span(self.slice_of(span))
    }

    /// The first slice of a span.
    pub(crate) fn slice_of(&self, span: &Span) -> usize {
        (core::ptr::from_ref(span).addr() - self.spans.addr()) / size_of::<Span>()
    }

    /// The address of a span's first byte.
    pub(crate) fn address_of(&self, span: &Span) -> usize {
        self.base + (self.slice_of(span) << SLICE_SHIFT)
    }

    /// The entry of a chunk.
    pub(crate) fn chunk(&self, chunk: usize) -> &Chunk {
        debug_assert!(chunk < self.chunks);
        // SAFETY: as in `span`.
        unsafe { &*self.chunk_entries.add(chunk) }
    }

    /// The number of the chunk with this entry.
    pub(crate) fn chunk_of(&self, entry: &Chunk) -> usize {
        (core::ptr::from_ref(entry).addr() - self.chunk_entries.addr()) / size_of::<Chunk>()
    }
}
