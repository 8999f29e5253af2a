//! Walking the elements that are present.

use crate::arena::Populated;
use core::ops::Range;

/// The ranges of elements of a sparse array that are present, in order; from
/// [`SparseArray::populated`](crate::SparseArray::populated).
#[derive(Clone, Debug)]
pub struct PopulatedElements<'a> {
    bytes: Populated<'a>,
    size: usize,
    len: usize,
    /// A range that was found while the one before it was completed.
    next: Option<Range<usize>>,
}

impl<'a> PopulatedElements<'a> {
    pub(crate) fn new(bytes: Populated<'a>, size: usize, len: usize) -> Self {
        let mut runs = Self { bytes, size, len, next: None };
        runs.next = runs.elements();
        runs
    }

    /// The elements of the next run of bytes.
    fn elements(&mut self) -> Option<Range<usize>> {
        let bytes = self.bytes.next()?;
        let end = bytes.end.div_ceil(self.size).min(self.len);
        // The page that the array ends on may hold nothing of it but the end of its last element.
        Some((bytes.start / self.size).min(end)..end)
    }
}

impl Iterator for PopulatedElements<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let mut run = self.next.take()?;
        // Runs of pages may meet in one element.
        loop {
            match self.elements() {
                Some(next) if next.start <= run.end => run.end = next.end,
                next => {
                    self.next = next;
                    return Some(run);
                }
            }
        }
    }
}
