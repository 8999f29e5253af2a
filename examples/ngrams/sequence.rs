//! Five bytes as a number.

use std::fmt;

/// Five bytes. Their order is that of their bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Sequence(usize);

impl Sequence {
    /// Bytes of a sequence.
    pub(crate) const LEN: usize = 5;

    /// How many sequences there are.
    pub(crate) const COUNT: usize = 1 << (8 * Self::LEN);

    /// Every sequence of `bytes`: one begins at each byte but the last four.
    pub(crate) fn all(bytes: &[u8]) -> impl Iterator<Item = Self> {
        bytes.windows(Self::LEN).map(Self::new)
    }

    /// The first byte counts most, so that sequences with the same beginning are neighbours in the
    /// table, and share its pages.
    fn new(bytes: &[u8]) -> Self {
        Self(bytes.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte)))
    }

    /// The sequence with this number.
    pub(crate) fn from_index(index: usize) -> Self {
        debug_assert!(index < Self::COUNT);
        Self(index)
    }

    /// Its number, below [`COUNT`](Self::COUNT).
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// Readable: in quotes, with escapes for what is not printable ASCII.
impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.to_be_bytes();
        write!(f, "\"{}\"", bytes[bytes.len() - Self::LEN..].escape_ascii())
    }
}
