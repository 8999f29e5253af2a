//! What every word of an arena must be: written ones tell where they belong and which write they are
//! of, untouched ones are the template's. One lost, stale or misplaced page shows at its first word.

use std::fmt;

/// Words of a page.
pub(crate) fn page_words() -> usize {
    lacuna::page_size() / 8
}

/// Marks a written word; no template has it.
const WRITTEN: u64 = 1 << 63;
const GENERATION_SHIFT: u32 = 48;
pub(crate) const GENERATIONS: u16 = 1 << 15;
const ARENA_SHIFT: u32 = 32;

/// What is written to word `index` of arena `id`: `generation` (15 bits), arena (16), word (32). Words
/// of a page are consecutive numbers, so that whole pages are compared fast.
pub(crate) fn tag(id: u16, index: usize, generation: u16) -> u64 {
    let generation = u64::from(generation % GENERATIONS) << GENERATION_SHIFT;
    WRITTEN | generation | u64::from(id) << ARENA_SHIFT | index as u64
}

/// Whether `value` was written to word `index` of arena `id` at some time.
pub(crate) fn belongs(id: u16, index: usize, value: u64) -> bool {
    value & !(u64::from(GENERATIONS - 1) << GENERATION_SHIFT) == tag(id, index, 0)
}

/// What an untouched arena contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Untouched {
    Zero,
    /// Three words, which no page is a multiple of.
    Repeat,
    /// A copy of bytes, so many words long; zeroes follow.
    Bytes(usize),
    /// As bytes, from a file.
    File(usize),
    /// A page function.
    Generate,
}

/// The repeated value.
pub(crate) const PERIOD: [u64; 3] = [0x0123_4567_89ab_cdef, 0x55aa_55aa_00ff_00ff, 7];

/// Word `index` of images and of what the page function makes.
pub(crate) fn image_word(index: usize) -> u64 {
    (index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) & !WRITTEN
}

impl Untouched {
    /// Word `index` of an untouched arena.
    pub(crate) fn word(self, index: usize) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Repeat => PERIOD[index % 3],
            Self::Bytes(words) | Self::File(words) if index >= words => 0,
            Self::Bytes(_) | Self::File(_) | Self::Generate => image_word(index),
        }
    }

    /// The words from `first` on, into `to`.
    fn words(self, first: usize, to: &mut [u64]) {
        match self {
            Self::Zero => to.fill(0),
            Self::Repeat => {
                let period = [0, 1, 2].map(|skip| PERIOD[(first + skip) % 3]);
                to.chunks_mut(3).for_each(|to| to.copy_from_slice(&period[..to.len()]));
            }
            _ => to.iter_mut().zip(first..).for_each(|(to, index)| *to = self.word(index)),
        }
    }
}

/// What a page of the model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// Never touched since it was last discarded.
    Absent,
    /// As the template has it, but present.
    Read,
    /// All of its words written.
    Full(u16),
    /// The word numbered by the generation was written, the others are the template's.
    Single(u16),
}

impl Page {
    /// What the words from `first` on of such a page are, into `to`.
    pub(crate) fn content(self, id: u16, untouched: Untouched, first: usize, to: &mut [u64]) {
        match self {
            Self::Full(generation) => {
                let base = tag(id, first, generation);
                to.iter_mut().zip(base..).for_each(|(to, word)| *to = word);
            }
            Self::Absent | Self::Read => untouched.words(first, to),
            Self::Single(generation) => {
                untouched.words(first, to);
                let page = first - first % page_words();
                let word = page + usize::from(generation) % page_words();
                if let Some(to) = word.checked_sub(first).and_then(|at| to.get_mut(at)) {
                    *to = tag(id, word, generation);
                }
            }
        }
    }
}

/// A value, and what it says about itself.
pub(crate) struct Found(pub(crate) u64);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(value) = *self;
        if value & WRITTEN == 0 {
            return write!(f, "{value:#x}, of a template or nobody's");
        }
        let generation = value >> GENERATION_SHIFT & u64::from(GENERATIONS - 1);
        let arena = value >> ARENA_SHIFT & 0xffff;
        let offset = (value & 0xffff_ffff) * 8;
        write!(f, "{value:#x}, of arena {arena}, offset {offset:#x}, generation {generation}")
    }
}
