//! Who gets which part of the address space: whole chunks by extents, parts of a chunk by slices.
//! What is free here is clean: no memory behind it, and nothing charged.

use super::list::List;
use super::table::{Chunk, SLICES, Table, Use};

/// Lists of free extents, by the logarithm of their length.
const LENGTHS: usize = 32;

/// The free address space of a heap.
pub(crate) struct Territory {
    table: Table,
    /// Chunks from here on were never used.
    frontier: usize,
    /// Free extents before the frontier; list `n` has those of 2^n to 2^(n+1) - 1 chunks.
    extents: [List<Chunk>; LENGTHS],
    /// Sliced chunks, by the longest run of free slices in them.
    sliced: [List<Chunk>; SLICES + 1],
    /// A bit for each list of those that may have chunks.
    sizes: u64,
}

// SAFETY: it leads to the heap's tables, which are used under the lock that this lies behind.
unsafe impl Send for Territory {}

impl Territory {
    pub(crate) fn new(table: Table) -> Self {
        Self {
            table,
            frontier: 0,
            extents: [const { List::new() }; LENGTHS],
            sliced: [const { List::new() }; SLICES + 1],
            sizes: 0,
        }
    }

    /// A run of `count` slices of one chunk, from where its free run is shortest.
    pub(crate) fn take_slices(&mut self, count: usize) -> Option<usize> {
        let fitting = self.sizes >> count;
        let chunk = match fitting {
            0 => self.take_chunks(1, 1).map(|chunk| self.slice(chunk))?,
            _ => {
                let longest = count + fitting.trailing_zeros() as usize;
                let entry = self.sliced[longest].first()?;
                let chunk = self.table.chunk_of(entry);
                self.unlist(chunk);
                chunk
            }
        };
        let entry = self.table.chunk(chunk);
        let first = find_run(entry.free.get(), count);
        entry.free.set(entry.free.get() & !mask(first, count));
        self.list(chunk);
        Some(chunk * SLICES + first)
    }

    /// Gives a run of slices back.
    pub(crate) fn give_slices(&mut self, slice: usize, count: usize) {
        let (chunk, first) = (slice / SLICES, slice % SLICES);
        self.unlist(chunk);
        let entry = self.table.chunk(chunk);
        entry.free.set(entry.free.get() | mask(first, count));
        match entry.free.get() {
            u32::MAX => self.give_chunks(chunk, 1),
            _ => self.list(chunk),
        }
    }

    /// Makes a taken chunk one that is given out by slices.
    fn slice(&self, chunk: usize) -> usize {
        let entry = self.table.chunk(chunk);
        entry.used.set(Use::Sliced);
        entry.free.set(u32::MAX);
        chunk
    }

    fn list(&mut self, chunk: usize) {
        let entry = self.table.chunk(chunk);
        let longest = longest_run(entry.free.get());
        self.sliced[longest].push_front(entry);
        // Those without a free slice are never looked for.
        self.sizes |= u64::from(longest > 0) << longest;
    }

    fn unlist(&mut self, chunk: usize) {
        let entry = self.table.chunk(chunk);
        let longest = longest_run(entry.free.get());
        self.sliced[longest].remove(entry);
        if self.sliced[longest].first().is_none() {
            self.sizes &= !(1 << longest);
        }
    }

    /// An extent of `count` chunks whose first is a multiple of `align`, a power of two, in chunks.
    pub(crate) fn take_chunks(&mut self, count: usize, align: usize) -> Option<usize> {
        // So much that an aligned part is in it.
        let spacious = count.checked_add(align - 1).filter(|it| *it <= self.table.chunks)?;
        let found = self.find_extent(spacious).or_else(|| self.advance(spacious))?;
        let (start, len) = found;
        // Counted from the address space's beginning, which the base need not be a multiple of.
        let offset = self.table.base / crate::page::CHUNK;
        let first = (start + offset).next_multiple_of(align) - offset;
        self.mark(first, count, Use::Taken);
        self.give_rest(start, first - start);
        self.give_rest(first + count, start + len - (first + count));
        Some(first)
    }

    /// Gives back what an extent is longer than was needed.
    fn give_rest(&mut self, first: usize, count: usize) {
        if count > 0 {
            self.give_chunks(first, count);
        }
    }

    /// Gives an extent back. No two free ones are neighbours afterwards, nor one and the frontier.
    pub(crate) fn give_chunks(&mut self, first: usize, count: usize) {
        let (mut start, mut end) = (first, first + count);
        self.mark(first, count, Use::Inside);
        if start > 0 && self.table.chunk(start - 1).used.get() == Use::Free {
            let len = self.table.chunk(start - 1).count.get() as usize;
            start -= len;
            self.remove_extent(start, len);
        }
        if end < self.frontier && self.table.chunk(end).used.get() == Use::Free {
            let len = self.table.chunk(end).count.get() as usize;
            self.remove_extent(end, len);
            end += len;
        }
        match end == self.frontier {
            true => self.frontier = start,
            false => self.put_extent(start, end - start),
        }
    }

    /// Makes the extent of `count` chunks from `first` on one of `wanted`, if it can grow or shrink
    /// where it is.
    pub(crate) fn resize(&mut self, first: usize, count: usize, wanted: usize) -> bool {
        let end = first + count;
        if wanted > count {
            let more = wanted - count;
            if end == self.frontier {
                if self.advance(more).is_none() {
                    return false;
                }
            } else {
                let next = self.table.chunk(end);
                let free = next.count.get() as usize;
                if next.used.get() != Use::Free || free < more {
                    return false;
                }
                self.remove_extent(end, free);
                self.mark(first, wanted, Use::Taken);
                self.give_rest(end + more, free - more);
            }
        }
        self.mark(first, count, Use::Inside);
        self.mark(first, wanted, Use::Taken);
        if wanted < count {
            self.mark(first + wanted, count - wanted, Use::Taken);
            self.give_chunks(first + wanted, count - wanted);
        }
        true
    }

    /// Takes `count` chunks that were never used.
    fn advance(&mut self, count: usize) -> Option<(usize, usize)> {
        let start = self.frontier;
        let end = start.checked_add(count).filter(|end| *end <= self.table.chunks)?;
        self.frontier = end;
        Some((start, count))
    }

    /// Takes a free extent of at least `count` chunks.
    fn find_extent(&mut self, count: usize) -> Option<(usize, usize)> {
        // Of its own list the first few are tried; of longer ones any will do.
        let own = count.ilog2() as usize;
        let fits = |entry: &&Chunk| entry.count.get() as usize >= count;
        let entry = self.extents[own]
            .iter()
            .take(8)
            .find(fits)
            .or_else(|| self.extents[own + 1..].iter().find_map(List::first))?;
        let found = (self.table.chunk_of(entry), entry.count.get() as usize);
        self.remove_extent(found.0, found.1);
        Some(found)
    }

    fn put_extent(&mut self, first: usize, count: usize) {
        self.mark(first, count, Use::Free);
        self.extents[count.ilog2() as usize].push_front(self.table.chunk(first));
    }

    fn remove_extent(&mut self, first: usize, count: usize) {
        self.extents[count.ilog2() as usize].remove(self.table.chunk(first));
        self.mark(first, count, Use::Inside);
    }

    /// Says at both ends of an extent what it is.
    fn mark(&self, first: usize, count: usize, used: Use) {
        for chunk in [first, first + count - 1] {
            let entry = self.table.chunk(chunk);
            entry.used.set(used);
            entry.count.set(count as u32);
        }
    }
}

/// `count` bits from `first` on; `count` is at least 1.
fn mask(first: usize, count: usize) -> u32 {
    (u32::MAX >> (SLICES - count)) << first
}

/// Where the first run of `count` set bits begins; there is one.
fn find_run(bits: u32, count: usize) -> usize {
    let (mut starts, mut covered) = (bits, 1);
    while covered < count {
        let step = covered.min(count - covered);
        starts &= starts >> step;
        covered += step;
    }
    starts.trailing_zeros() as usize
}

/// The length of the longest run of set bits.
fn longest_run(mut bits: u32) -> usize {
    let mut longest = 0;
    while bits != 0 {
        bits &= bits >> 1;
        longest += 1;
    }
    longest
}
