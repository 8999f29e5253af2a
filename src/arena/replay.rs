//! Replaying a trace: what the last run touched is made present before this one touches it.

use super::Arena;
use super::populate::{Cause, Part};
use super::read_ahead::read_ahead;
use super::trace::{Run, Trace};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::bits::Snapshot;
use crate::fault::decode::Access;
use crate::fault::region::Region;
use crate::fault::source::Content;
use crate::fault::tables::Chunk;
use crate::fault::tuning::REPLAY_BATCH;
use core::ops::Range;

/// What came of [`Arena::replay`]. Bytes are whole pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Replayed {
    /// Bytes of the trace that are present now, whether they were before or not.
    pub present_bytes: usize,
    /// Bytes of the trace that are not: past the arena's end or its limit, poisoned, without room in the
    /// budget, or gone from the template's file.
    pub skipped_bytes: usize,
}

/// Pages of the arena, and how they were touched.
struct Stretch {
    pages: Range<usize>,
    access: Access,
}

impl Arena {
    /// Makes present what was touched while `trace` was recorded, what was touched first before the rest:
    /// by few large operations in place of a signal for each page. The pages of an image of a file are
    /// read ahead besides, while others are installed. Touching what was replayed does not fault.
    ///
    /// What cannot be made present is skipped: it comes, or is a violation, when it is touched. That is
    /// what lies past the arena's end or past the limit, since the trace may be of a longer arena; what is
    /// [poisoned](Self::poison); what the budget has no room for; and what a file no longer has. What is
    /// present already stays as it is. Pages that were only read show the zero page if they are zeroes,
    /// and the image's own if it is [shared](super::Template::shared), which takes no memory (they are
    /// charged to the budget all the same).
    ///
    /// **What it installs is charged**: under a budget, a trace of pages that the program would give
    /// back meanwhile may leave no room for those that it touches next.
    ///
    /// Other threads may touch the arena meanwhile, so a program may start while a thread of its own
    /// replays.
    ///
    /// # Errors
    /// - [`ErrorKind::PageSizeDiffers`]: the trace was recorded with another page size.
    /// - [`ErrorKind::Os`] with `ENOMEM`: there is no memory, or no mapping
    ///   ([`Backend::Mprotect`](crate::Backend::Mprotect)). What was replayed stays.
    /// - [`ErrorKind::NotInherited`]: a forked child must not touch the arena.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see [`Arena`].
    ///
    /// ```
    /// use lacuna::{Arena, Template, page_size};
    ///
    /// let image = || Arena::builder(1 << 30).template(Template::repeat(&7u8)?).reserve();
    /// let touch = |arena: &Arena| {
    ///     // SAFETY: the byte is within the arena, and nobody else uses it.
    ///     (0..100).for_each(|n| unsafe { arena.as_ptr().add(n << 20).write(1) });
    /// };
    /// let last = image()?;
    /// last.start_recording(1000)?;
    /// touch(&last);
    /// let trace = last.stop_recording()?;
    ///
    /// let next = image()?;
    /// assert_eq!(next.replay(&trace)?.present_bytes, 100 * page_size());
    /// touch(&next);
    /// assert_eq!(next.stats().faults, 0);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn replay(&self, trace: &Trace) -> Result<Replayed> {
        self.check_inherited(Operation::Replay)?;
        if trace.page_shift() != self.region().page_shift {
            let error = Error::new(Operation::Replay, ErrorKind::PageSizeDiffers);
            return Err(error.value(trace.page_size()));
        }
        let region = self.region();
        let mut batches = Batches { region, runs: trace.runs(), taken: 0 };
        let mut present = 0;
        let mut next = batches.next();
        let begin_to_read =
            |batch: &Vec<Stretch>| read_ahead(region, batch.iter().map(|it| it.pages.clone()));
        next.iter().for_each(begin_to_read);
        while let Some(batch) = next {
            // The disk is busy with the next pages while these are installed.
            next = batches.next();
            next.iter().for_each(begin_to_read);
            for chunk in batch.chunk_by(|a, b| self.chunk_of(a) == self.chunk_of(b)) {
                present += self.replay_chunk(chunk)?;
            }
        }
        let bytes = |pages: usize| pages << region.page_shift;
        let (present_bytes, all) = (bytes(present), bytes(trace.len()));
        Ok(Replayed { present_bytes, skipped_bytes: all.saturating_sub(present_bytes) })
    }

    fn chunk_of(&self, stretch: &Stretch) -> usize {
        stretch.pages.start / self.region().chunk_pages()
    }

    /// Makes stretches of one chunk present; tells how many of their pages are.
    fn replay_chunk(&self, stretches: &[Stretch]) -> Result<usize> {
        let Some(first) = stretches.first() else { return Ok(0) };
        let index = self.chunk_of(first);
        let start = self.region().pages_of(index).start;
        let Some(chunk) = self.region().tables.chunk(index) else { return Ok(0) };
        let parts: Vec<Part> =
            stretches.iter().flat_map(|stretch| parts_of(stretch, start, &chunk)).collect();
        let mut skipped = Vec::new();
        let mut from = 0;
        while let Err((done, cause)) = self.populate_chunk(index, &parts[from..]) {
            match cause {
                // The others may be there, or be readable.
                Cause::Kind(_) => skipped.push(from + done),
                Cause::Os(errno) => return Err(Error::os(Operation::Replay, errno)),
            }
            from += done + 1;
        }
        let all: usize = parts.iter().map(|part| part.pages.len()).sum();
        let absent = |part: &usize| {
            parts[*part].pages.clone().filter(|page| !chunk.is_present(*page)).count()
        };
        Ok(all - skipped.iter().map(absent).sum::<usize>())
    }
}

/// A stretch of the chunk that begins at page `start`, without what is poisoned. (Where somebody poisons
/// more of it meanwhile, the part that it lies in is skipped.)
fn parts_of(
    stretch: &Stretch,
    start: usize,
    chunk: &Chunk<'_>,
) -> impl Iterator<Item = Part> + use<> {
    let mut pages = Snapshot::EMPTY;
    pages.insert(stretch.pages.start - start..stretch.pages.end - start);
    let access = stretch.access;
    pages.minus(&chunk.poisoned()).runs().map(move |pages| Part { pages, access })
}

/// The runs of a trace that may be replayed, some at a time: sorted, merged, cut where chunks end.
struct Batches<'a> {
    region: &'a Region,
    runs: &'a [Run],
    /// Pages of the first run that have been taken.
    taken: usize,
}

impl Iterator for Batches<'_> {
    type Item = Vec<Stretch>;

    fn next(&mut self) -> Option<Vec<Stretch>> {
        let mut batch = Vec::new();
        let mut room = REPLAY_BATCH;
        while let [run, rest @ ..] = self.runs
            && room > 0
        {
            let first = run.first as usize + self.taken;
            let pages = (run.pages as usize - self.taken).min(room);
            room -= pages;
            self.taken += pages;
            if self.taken == run.pages as usize {
                (self.runs, self.taken) = (rest, 0);
            }
            self.add(&mut batch, first..first + pages, run.access);
        }
        (room < REPLAY_BATCH).then(|| self.merged(batch))
    }
}

impl Batches<'_> {
    /// Adds those of `pages` that may be touched, by kind: where there is neither a zero page nor a shared
    /// image's page to show, what was read is memory as well.
    fn add(&self, batch: &mut Vec<Stretch>, mut pages: Range<usize>, access: Access) {
        pages.end = pages.end.min(self.region.limit()).min(self.region.pages);
        while !pages.is_empty() {
            let (access, count) = match access {
                Access::Write => (Access::Write, pages.len()),
                Access::Read => self.kind(pages.start, pages.len()),
            };
            let end = pages.start + count;
            batch.push(Stretch { pages: pages.start..end, access });
            pages.start = end;
        }
    }

    /// What page `page` is to be once it was read, and how many of `left` pages from it on.
    fn kind(&self, page: usize, left: usize) -> (Access, usize) {
        match self.region.source.at(page, self.region.page_shift) {
            Content::Zero => (Access::Read, left),
            Content::Hole { pages }
            | Content::SharedHole { pages }
            | Content::Shared { pages, .. } => (Access::Read, pages.clamp(1, left)),
            Content::Bytes { pages, .. } => (Access::Write, pages.clamp(1, left)),
            Content::Generated => (Access::Write, left),
        }
    }

    /// Sorts a batch, merges neighbours, and cuts where chunks end, and where a shared image does: it is
    /// another mapping, which no system call can fill together with the rest.
    fn merged(&self, mut batch: Vec<Stretch>) -> Vec<Stretch> {
        batch.sort_unstable_by_key(|stretch| stretch.pages.start);
        let chunk = self.region.chunk_pages();
        let shared = self.region.source.shared_pages();
        let mut merged: Vec<Stretch> = Vec::with_capacity(batch.len());
        for Stretch { mut pages, access } in batch {
            while !pages.is_empty() {
                let cut = match (pages.start / chunk + 1) * chunk {
                    cut if (pages.start + 1..cut).contains(&shared) => shared,
                    cut => cut,
                };
                let part = pages.start..pages.end.min(cut);
                pages.start = part.end;
                match merged.last_mut() {
                    Some(last)
                        if last.pages.end == part.start
                            && last.access == access
                            && !part.start.is_multiple_of(chunk)
                            && part.start != shared =>
                    {
                        last.pages.end = part.end;
                    }
                    _ => merged.push(Stretch { pages: part, access }),
                }
            }
        }
        merged
    }
}
