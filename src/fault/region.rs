//! The part of an arena that the fault handler reads.

use super::backend::Backend;
use super::backing::Backing;
use super::ledger::Ledger;
use super::log::Log;
use super::signals::Signal;
use super::source::Source;
use super::tables::{Chunk, Tables};
use super::track::{Track, Tracking};
use super::tuning::HOLES_SHARE;
use super::window::{Surroundings, Window};
use crate::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::fork::OnFork;
use crate::page::CHUNK_SHIFT;
use core::ops::Range;

/// The longest name, in bytes.
pub(crate) const NAME_MAX: usize = 63;

/// In [`Region::huge`]: the arena, its template and the kernel are fit for it.
pub(crate) const HUGE_ALLOWED: u32 = 1;
/// In [`Region::huge`]: there is a checkpoint, and a huge page would arrive unprotected.
pub(crate) const HUGE_PAUSED: u32 = 2;

/// An arena's name, held in place: diagnostics are printed where nothing can be allocated.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    pub(super) bytes: [u8; NAME_MAX],
    pub(super) len: u8,
}

impl Name {
    /// `None` if the name is too long.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let mut bytes = [0; NAME_MAX];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { bytes, len: name.len() as u8 })
    }

    pub(crate) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..usize::from(self.len)).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// What the handler knows of an arena. Configuration is fixed while the region is published; what
/// changes is atomic.
pub(crate) struct Region {
    pub(crate) backend: Backend,
    pub(crate) backing: Backing,
    /// First byte of the reservation, aligned to a chunk.
    pub(crate) base: usize,
    /// Pages of the reservation.
    pub(crate) pages: usize,
    /// log2 of the size of its pages, base pages or huge ones.
    pub(crate) page_shift: u32,
    /// Pages that may be charged.
    pub(crate) budget: u64,
    pub(crate) window: Window,
    pub(crate) source: Source,
    pub(crate) name: Name,
    /// [`HUGE_ALLOWED`] alone while whole chunks may be filled with huge pages.
    pub(crate) huge: AtomicU32,
    /// How the arena learns of writes since a checkpoint.
    pub(crate) tracking: Tracking,
    /// Whether the region is registered with the second userfaultfd.
    pub(crate) is_second: bool,
    /// The checkpoint, if there is one.
    pub(crate) track: Track,
    /// Whether chunks may be lent: the template is zeroes, and the arena was not told otherwise.
    pub(crate) lends: bool,
    /// 1 while they may be lent now. An arena that restores pages in place lends nothing of a shared
    /// image before the pages that it keeps turn out to be others than those it needs.
    pub(crate) scattered: AtomicU32,
    /// The order of first touches, while it is recorded.
    pub(crate) log: Log,
    /// 1 once the whole reservation is the kernel's to fill: it raises no signal any more.
    pub(crate) handed_over: AtomicU32,
    /// Where the search for a chunk to recall goes on.
    pub(crate) hand: AtomicUsize,
    /// Pages that may be touched.
    pub(crate) limit: AtomicUsize,
    /// What a forked child gets.
    pub(crate) on_fork: OnFork,
    /// 1 in a child that must not touch the arena. Its limit is 0, so that a fault looks here only
    /// when there is a violation to explain.
    pub(crate) forbidden: AtomicU32,
    /// Mappings of the process that lending has made in this region.
    pub(crate) mappings: AtomicUsize,
    pub(crate) tables: Tables,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Counters,
}

/// Counts of events, for statistics.
#[derive(Default)]
pub(crate) struct Counters {
    /// Faults that the handler was called for.
    pub(crate) faults: AtomicU64,
    /// Those of them that found their page present, or about to be.
    pub(crate) raced: AtomicU64,
}

impl Counters {
    /// Starts anew, in a forked child that has no other thread.
    pub(crate) fn clear(&self) {
        self.faults.store(0, Ordering::Relaxed);
        self.raced.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count(counter: &AtomicU64) {
        // Relaxed: statistics.
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Region {
    /// Whether this is the signal that the kernel raises for the region's missing pages; any other
    /// has a cause that is none of ours.
    pub(crate) fn raises(&self, signal: Signal) -> bool {
        // Relaxed: set before anybody has a block of the heap's.
        self.backend.signal() == signal && self.handed_over.load(Ordering::Relaxed) == 0
    }

    /// Pages of a whole chunk.
    pub(crate) fn chunk_pages(&self) -> usize {
        1 << self.chunk_page_shift()
    }

    /// log2 of that.
    pub(crate) fn chunk_page_shift(&self) -> u32 {
        CHUNK_SHIFT.saturating_sub(self.page_shift)
    }

    /// The page that `address` lies in, counted from the start of the reservation; `None` outside.
    pub(crate) fn page_of(&self, address: usize) -> Option<usize> {
        let page = address.checked_sub(self.base)? >> self.page_shift;
        (page < self.pages).then_some(page)
    }

    /// The address of a page.
    pub(crate) fn address_of(&self, page: usize) -> usize {
        self.base.wrapping_add(page.wrapping_shl(self.page_shift))
    }

    /// The chunk that a page lies in, and which of the chunk's pages it is.
    pub(crate) fn chunk_of(&self, page: usize) -> Option<(Chunk<'_>, usize)> {
        let chunk = self.tables.chunk(page >> self.chunk_page_shift())?;
        Some((chunk, page & self.chunk_pages().wrapping_sub(1)))
    }

    /// The pages of the reservation that chunk `index` holds.
    pub(crate) fn pages_of(&self, index: usize) -> Range<usize> {
        let first = index.wrapping_shl(self.chunk_page_shift());
        first..first.saturating_add(self.chunk_pages()).min(self.pages)
    }

    /// Whether whole chunks may be filled with huge pages.
    pub(crate) fn fills_huge(&self) -> bool {
        // Relaxed: see where the bits are changed.
        self.huge.load(Ordering::Relaxed) == HUGE_ALLOWED
    }

    /// Those of `pages`, of the reservation, that lie in chunk `index`, counted from its start.
    pub(crate) fn part_of(&self, index: usize, pages: &Range<usize>) -> Range<usize> {
        let whole = self.pages_of(index);
        let inside = |page: usize| page.clamp(whole.start, whole.end).wrapping_sub(whole.start);
        inside(pages.start)..inside(pages.end)
    }

    /// Enters a chunk to install pages: as one of its fillers, or, where the backend does not tell
    /// whether a page is there already, as its owner, with signals blocked. False if it has an owner.
    #[inline(always)]
    pub(crate) fn enter(&self, chunk: &Chunk<'_>) -> bool {
        match self.backend {
            Backend::Userfaultfd => chunk.state.enter(),
            Backend::Mprotect => chunk.own(),
        }
    }

    /// Ends what a successful [`enter`](Self::enter) began.
    #[inline(always)]
    pub(crate) fn leave(&self, chunk: &Chunk<'_>) {
        match self.backend {
            Backend::Userfaultfd => chunk.state.leave(),
            Backend::Mprotect => chunk.state.release(),
        }
    }

    /// Runs `work` as the owner of a chunk that the caller has entered; false if somebody else has
    /// entered it too.
    #[inline(always)]
    pub(crate) fn alone(&self, chunk: &Chunk<'_>, work: impl FnOnce() -> bool) -> bool {
        match self.backend {
            Backend::Mprotect => work(),
            Backend::Userfaultfd => {
                chunk.state.upgrade() && {
                    let done = work();
                    chunk.state.downgrade();
                    done
                }
            }
        }
    }

    /// Pages that may be touched now.
    pub(crate) fn limit(&self) -> usize {
        // Relaxed: a thread that learns of the new limit by the program's own synchronisation
        // learns of this store by the same.
        self.limit.load(Ordering::Relaxed)
    }

    /// Whether this is a child that must not touch the arena.
    pub(crate) fn is_forbidden(&self) -> bool {
        // Relaxed: set by the only thread of a forked child, and never cleared.
        self.forbidden.load(Ordering::Relaxed) != 0
    }

    /// Whether a chunk may be lent now: the kernel fills it as the template says, and it is one mapping.
    pub(crate) fn may_lend(&self, chunk: &Chunk<'_>) -> bool {
        // Relaxed: a hint.
        let now = self.scattered.load(Ordering::Relaxed) != 0;
        let (pages, shared) = (self.pages_of(chunk.index), self.source.shared_pages());
        now && match self.source {
            // Not the image's last page, which the kernel does not have.
            Source::Shared { .. } if pages.end > shared => pages.start > shared,
            // Where the kernel meets a hole, the file gets a page, which is charged to nobody.
            Source::Shared { .. } => self.source.holes(&pages) <= pages.len() / HOLES_SHARE,
            _ => true,
        }
    }

    /// Whether a chunk may be filled with a huge page: pages cannot be moved over a shared image.
    pub(crate) fn may_be_huge(&self, chunk: &Chunk<'_>) -> bool {
        self.fills_huge() && self.pages_of(chunk.index).start >= self.source.shared_pages()
    }

    /// The poisoned pages without a gap that page `page`, one of them, lies among.
    pub(crate) fn poisoned_around(&self, page: usize) -> Range<usize> {
        let (mut start, mut end) = (page, page.saturating_add(1));
        while let Some((chunk, inside)) = start.checked_sub(1).and_then(|it| self.chunk_of(it)) {
            let poisoned = chunk.poisoned();
            let run = inside
                .saturating_add(1)
                .saturating_sub(poisoned.run_before(inside.saturating_add(1)));
            start = start.saturating_sub(run);
            if run <= inside {
                break;
            }
        }
        while let Some((chunk, inside)) = (end < self.pages).then(|| self.chunk_of(end)).flatten() {
            let whole = self.pages_of(chunk.index).len();
            let run = chunk.poisoned().next_clear(inside..whole).saturating_sub(inside);
            end = end.saturating_add(run);
            if inside.saturating_add(run) < whole {
                break;
            }
        }
        start..end
    }

    /// The pages to resolve for a fault on page `page` of `chunk`, whose present pages are given.
    #[inline(always)]
    pub(crate) fn plan(
        &self,
        chunk: &Chunk<'_>,
        page: usize,
        present: &super::bits::Snapshot,
    ) -> Range<usize> {
        let pages = self.pages_of(chunk.index);
        let end = pages.end.min(self.limit()).saturating_sub(pages.start);
        let whole = self.chunk_pages();
        // The neighbours are looked at only where a stream may cross into the chunk.
        let before = match chunk.index.checked_sub(1) {
            Some(index) if present.run_before(page) == 0 => self.run_at_end(index),
            _ => 0,
        };
        let after = match present.next_clear(page.saturating_add(1)..end) {
            last if last == end && end == whole => self.run_at_start(chunk.index.saturating_add(1)),
            _ => 0,
        };
        let room = self.ledger.room(self.budget);
        let window = self.window.plan(page, &Surroundings { present, end, before, after, room });
        // A shared image is another mapping, which no system call can fill together with the rest.
        match self.source.shared_pages().saturating_sub(pages.start) {
            0 => window,
            shared if page < shared => window.start..window.end.min(shared),
            shared => window.start.max(shared)..window.end,
        }
    }

    /// How many pages at the end of chunk `index` are present without a gap.
    fn run_at_end(&self, index: usize) -> usize {
        self.stream_chunk(index).map_or(0, |chunk| chunk.run_at_end(self.chunk_pages()))
    }

    /// How many pages at the start of chunk `index` are present without a gap.
    fn run_at_start(&self, index: usize) -> usize {
        self.stream_chunk(index).map_or(0, |chunk| chunk.run_at_start(self.chunk_pages()))
    }

    /// Chunk `index`, unless it is lent: what the kernel may or may not have filled says nothing
    /// of a stream.
    fn stream_chunk(&self, index: usize) -> Option<Chunk<'_>> {
        self.tables.chunk(index).filter(|chunk| !chunk.state.is_lent())
    }
}
