//! Freed blocks that are out of use, so that touching one is noticed: where they lay, and whose they were.
//! A heap enters them here and makes them inaccessible; the handler looks a touched address up when it is
//! nobody else's.
//!
//! The table is as long as a quarantine may be, and gone through from end to end: the process is about to
//! die, mostly. It takes no memory before there is a freed block in it.

use super::region::{NAME_MAX, Name};
use crate::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Blocks of all heaps of the process.
const BLOCKS: usize = 1024;

/// Words that hold a name's bytes.
const WORDS: usize = (NAME_MAX + 1) / size_of::<u64>();

/// One freed block. All zeroes is a free entry.
struct Entry {
    /// Its first byte; 0 if there is none, 1 while it is being written.
    start: AtomicUsize,
    /// Bytes that are inaccessible.
    len: AtomicUsize,
    /// Bytes that were asked for.
    size: AtomicUsize,
    /// The heap's first byte.
    base: AtomicUsize,
    name: [AtomicU64; WORDS],
}

static TABLE: [Entry; BLOCKS] = [const {
    Entry {
        start: AtomicUsize::new(FREE),
        len: AtomicUsize::new(0),
        size: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
        name: [const { AtomicU64::new(0) }; WORDS],
    }
}; BLOCKS];

const FREE: usize = 0;
const WRITING: usize = 1;

/// 1 once there was an entry.
static USED: AtomicU32 = AtomicU32::new(0);

/// A freed block.
#[derive(Clone, Copy)]
pub(crate) struct Freed {
    pub(crate) start: usize,
    pub(crate) len: usize,
    pub(crate) size: usize,
    pub(crate) base: usize,
    pub(crate) name: Name,
}

/// Enters a block; `None` if there are too many.
pub(crate) fn enter(freed: &Freed) -> Option<u32> {
    // Relaxed: a touch of the block is ordered after it by the program, or is a race of the program's.
    USED.store(1, Ordering::Relaxed);
    let is_ours = |entry: &Entry| {
        // Acquire pairs with the Release in `leave`: nobody is writing it still.
        let taken =
            entry.start.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok()
    };
    let index = TABLE.iter().position(is_ours)?;
    let entry = TABLE.get(index)?;
    entry.len.store(freed.len, Ordering::Relaxed);
    entry.size.store(freed.size, Ordering::Relaxed);
    entry.base.store(freed.base, Ordering::Relaxed);
    for (word, value) in entry.name.iter().zip(freed.name.words()) {
        word.store(value, Ordering::Relaxed);
    }
    // Release pairs with the Acquire in `find`: the rest is written.
    entry.start.store(freed.start, Ordering::Release);
    Some(index as u32)
}

/// Takes a block out again.
pub(crate) fn leave(index: u32) {
    if let Some(entry) = TABLE.get(index as usize) {
        entry.start.store(FREE, Ordering::Release);
    }
}

/// The freed block that an address lies in.
#[cold]
#[inline(never)]
pub(crate) fn find(address: usize) -> Option<Freed> {
    if USED.load(Ordering::Relaxed) == 0 {
        return None;
    }
    TABLE.iter().find_map(|entry| {
        let start = entry.start.load(Ordering::Acquire);
        let len = entry.len.load(Ordering::Relaxed);
        if start <= WRITING || address.wrapping_sub(start) >= len {
            return None;
        }
        let mut words = [0; WORDS];
        for (value, word) in words.iter_mut().zip(&entry.name) {
            *value = word.load(Ordering::Relaxed);
        }
        Some(Freed {
            start,
            len,
            size: entry.size.load(Ordering::Relaxed),
            base: entry.base.load(Ordering::Relaxed),
            name: Name::from_words(words),
        })
    })
}

impl Name {
    /// Its bytes, and its length as the last.
    fn words(&self) -> [u64; WORDS] {
        let mut words = [[0; 8]; WORDS];
        let bytes = self.bytes.iter().chain([&self.len]);
        words.as_flattened_mut().iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        words.map(u64::from_ne_bytes)
    }

    fn from_words(words: [u64; WORDS]) -> Self {
        let mut name = Self { bytes: [0; NAME_MAX], len: 0 };
        let words = words.map(u64::to_ne_bytes);
        let bytes = name.bytes.iter_mut().chain([&mut name.len]);
        bytes.zip(words.as_flattened()).for_each(|(to, from)| *to = *from);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_until_they_leave() {
        for name in ["", "heap", &"x".repeat(NAME_MAX)] {
            let freed = Freed {
                start: 1 << 50,
                len: 4096,
                size: 100,
                base: 7,
                name: Name::new(name).unwrap(),
            };
            let index = enter(&freed).unwrap();
            let found = find((1 << 50) + 4095).unwrap();
            assert_eq!((found.start, found.size, found.base), (1 << 50, 100, 7));
            assert_eq!(found.name.as_str(), name);
            assert!(find((1 << 50) + 4096).is_none() && find((1 << 50) - 1).is_none());
            leave(index);
            assert!(find(1 << 50).is_none());
        }
    }
}
