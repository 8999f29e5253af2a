//! Walking what is present.

use super::Arena;
use crate::fault::bits::Snapshot;
use crate::fault::pagemap::{Page, Pagemap};
use core::ops::Range;
use std::sync::Arc;

/// The present parts of an arena, as byte ranges in order; from [`Arena::populated`].
///
/// It costs in proportion to what is present. Which pages of a lent chunk are there is asked of the
/// kernel; if it does not tell, they count as present, all of them. Runs never touch each other.
/// While other threads touch or discard, it shows each 2 MiB chunk as it was at some moment of the
/// walk.
#[derive(Clone, Debug)]
pub struct Populated<'a> {
    arena: &'a Arena,
    /// The chunk being walked, what was present in it, and from which of its pages on.
    chunk: usize,
    present: Snapshot,
    page: usize,
    /// Set once no further chunk has pages.
    ended: bool,
    /// The kernel's view, opened at the first lent chunk, if it can be.
    pagemap: Option<Option<Arc<Pagemap>>>,
}

impl Arena {
    /// The ranges of bytes, whole pages, that are present, in order.
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 40).reserve()?;
    /// let page = lacuna::page_size();
    /// // SAFETY: the offset is within the arena, and nobody else uses the arena.
    /// unsafe { arena.as_ptr().add(9 * page + 5).write(1) };
    /// assert_eq!(arena.populated().collect::<Vec<_>>(), [9 * page..10 * page]);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    #[must_use]
    pub fn populated(&self) -> Populated<'_> {
        let mut runs = Populated {
            arena: self,
            chunk: 0,
            present: Snapshot::EMPTY,
            page: 0,
            ended: false,
            pagemap: None,
        };
        runs.enter_from(0);
        runs
    }

    /// Whether the page that byte `offset` lies in is present.
    pub(crate) fn is_present(&self, offset: usize) -> bool {
        let region = self.region();
        region
            .chunk_of(offset >> region.page_shift)
            .is_some_and(|(chunk, page)| chunk.is_present(page))
    }
}

impl Populated<'_> {
    /// Goes on with the first chunk at or after `chunk` that has pages.
    fn enter_from(&mut self, chunk: usize) {
        let tables = &self.arena.region().tables;
        match tables.summary().next(chunk).and_then(|index| tables.chunk(index)) {
            Some(chunk) => {
                self.chunk = chunk.index;
                self.present = match chunk.state.is_lent() {
                    true => self.ask(chunk.index).unwrap_or(chunk.present()),
                    false => chunk.present(),
                };
                self.page = 0;
            }
            None => self.ended = true,
        }
    }

    /// The pages of a lent chunk that are there, by the kernel's account.
    fn ask(&mut self, chunk: usize) -> Option<Snapshot> {
        let open = || Pagemap::open().ok().map(Arc::new);
        let pagemap = self.pagemap.get_or_insert_with(open).as_ref()?;
        let mut present = Snapshot::EMPTY;
        let mut visit = |pages, page| match page {
            Page::Memory | Page::Common => present.insert(pages),
            Page::Absent => {}
        };
        pagemap.visit(self.arena.region(), chunk, &mut visit).ok()?;
        Some(present)
    }

    /// The next run within one chunk, in pages of the arena.
    fn next_in_chunk(&mut self) -> Option<Range<usize>> {
        let whole = self.arena.region().chunk_pages();
        while !self.ended {
            let start = self.present.next_set(self.page..whole);
            if start < whole {
                self.page = self.present.next_clear(start..whole);
                let first = self.chunk * whole;
                return Some(first + start..first + self.page);
            }
            self.enter_from(self.chunk + 1);
        }
        None
    }
}

impl Iterator for Populated<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let region = self.arena.region();
        let mut run = self.next_in_chunk()?;
        // A run may go on in the chunks that follow.
        while run.end % region.chunk_pages() == 0 {
            let mark = self.clone();
            match self.next_in_chunk() {
                Some(next) if next.start == run.end => run.end = next.end,
                _ => {
                    *self = mark;
                    break;
                }
            }
        }
        Some(run.start << region.page_shift..run.end << region.page_shift)
    }
}
