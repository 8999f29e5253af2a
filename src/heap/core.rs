//! What the threads of a heap share: its address space, spans that nobody owns, and the caches.

use super::block::Block;
use super::cache::Cache;
use super::class;
use super::list::List;
use super::pages::Pages;
use super::span::{Kind, Span};
use super::table::{SLICE_SHIFT, SLICES, Table};
use super::territory::Territory;
use crate::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::fault::region::Name;
use crate::lock::Mutex;
use core::iter::StepBy;
use core::ops::Range;
use core::ptr;

/// Milliseconds that an empty span is kept before its memory goes back to the system.
const KEPT_FOR: u32 = 500;

/// The list of [`Shared::kept`] for extents.
pub(crate) const EXTENTS: usize = 2;

/// The lists of runs come after those: of no slice, of one, and so on.
pub(crate) const FIRST_RUN: usize = EXTENTS + 1;

/// Spans that are given back by one call at most, so that none takes long.
const GIVEN_AT_ONCE: usize = 4;

/// A heap, as its allocations see it. It lies in a mapping of its own and never moves.
pub(crate) struct Core {
    /// Unlike that of any other heap of the process, ever.
    pub(crate) id: u64,
    /// Where threads have their caches in it.
    pub(crate) seat: usize,
    /// Whether it is the one that threads look for first.
    pub(crate) is_home: bool,
    /// For messages.
    pub(crate) name: Name,
    /// Whether freed large blocks are put in quarantine.
    pub(crate) poisons: bool,
    pub(crate) table: Table,
    pub(crate) pages: Pages,
    pub(crate) shared: Mutex<Shared>,
    /// Large blocks.
    pub(crate) large: Counts,
    pub(crate) large_bytes: AtomicU64,
    /// Whether a block has ever stayed in more room than its layout asks for; see `stays`.
    pub(crate) stayed: AtomicBool,
    /// The cache of threads that have none, because they are about to end or there are too many.
    pub(crate) common: Mutex<Common>,
}

/// Blocks allocated and freed, ever.
pub(crate) struct Counts {
    pub(crate) allocated: AtomicU64,
    pub(crate) freed: AtomicU64,
}

/// A cache behind a lock.
pub(crate) struct Common(pub(crate) Cache);

// SAFETY: it is used under its lock.
unsafe impl Send for Common {}

// SAFETY: all that is not atomic lies behind locks, but for the entries of the table, which belong to
// their owners.
unsafe impl Sync for Core {}

/// What is changed under the heap's lock.
pub(crate) struct Shared {
    pub(crate) territory: Territory,
    /// What was freed and is kept for the next who needs it, the latest first: spans of one slice and
    /// of eight, extents, and runs of each length.
    pub(crate) kept: [List<Span>; FIRST_RUN],
    pub(crate) kept_runs: [List<Span>; SLICES + 1],
    /// Freed large blocks that are out of use, the latest first, and how many bytes of them are
    /// inaccessible.
    pub(crate) quarantined: List<Span>,
    pub(crate) quarantined_bytes: usize,
    /// Spans of threads that are gone, by class.
    orphans: [List<Span>; class::COUNT],
    /// Caches that threads have, and those that no thread has now.
    pub(crate) taken: List<Cache>,
    pub(crate) idle: List<Cache>,
    /// Memory for further caches.
    pub(crate) unmade: StepBy<Range<usize>>,
}

// SAFETY: it is used under its lock.
unsafe impl Send for Shared {}

impl Shared {
    pub(crate) fn new(table: Table, unmade: StepBy<Range<usize>>) -> Self {
        Self {
            territory: Territory::new(table),
            kept: [const { List::new() }; FIRST_RUN],
            kept_runs: [const { List::new() }; SLICES + 1],
            quarantined: List::new(),
            quarantined_bytes: 0,
            orphans: [const { List::new() }; class::COUNT],
            taken: List::new(),
            idle: List::new(),
            unmade,
        }
    }
}

impl Counts {
    pub(crate) const fn new() -> Self {
        Self { allocated: AtomicU64::new(0), freed: AtomicU64::new(0) }
    }
}

impl Core {
    /// A cache for a thread; null if there are too many.
    pub(crate) fn take_cache(&self) -> *const Cache {
        let mut shared = self.shared.lock();
        let cache = match shared.idle.pop_front() {
            Some(cache) => ptr::from_ref(cache),
            None => {
                let Some(address) = shared.unmade.next() else { return ptr::null() };
                let cache = ptr::with_exposed_provenance_mut::<Cache>(address);
                // SAFETY: the memory is zeroed, aligned, large enough, and nobody else's.
                unsafe { cache.write(Cache::new(self, self.table)) };
                cache.cast_const()
            }
        };
        // SAFETY: caches are never unmade before their heap goes.
        shared.taken.push_front(unsafe { &*cache });
        cache
    }

    /// Takes a cache back from a thread.
    pub(crate) fn give_cache(&self, cache: *const Cache) {
        // SAFETY: as above.
        let cache = unsafe { &*cache };
        cache.abandon();
        let shared = self.shared.lock();
        shared.taken.remove(cache);
        shared.idle.push_front(cache);
    }

    /// Locks everything, so that a fork copies it whole.
    pub(crate) fn lock_all(&self) {
        core::mem::forget((self.common.lock(), self.shared.lock()));
    }

    /// # Safety
    /// [`lock_all`](Self::lock_all) locked it, on this thread or on the one that forked it.
    pub(crate) unsafe fn unlock_all(&self) {
        // SAFETY: as the caller promises.
        unsafe {
            self.shared.force_unlock();
            self.common.force_unlock();
        }
    }

    /// A span for `class` with blocks to give, for a cache to own: one that another thread has left,
    /// or an empty one.
    pub(crate) fn take_span(&self, class: usize, owner: &Cache) -> Option<&Span> {
        let mut shared = self.shared.lock();
        if let Some(span) = shared.orphans[class].pop_front() {
            let span = self.table.keep(span);
            span.set_owner(owner);
            span.collect();
            return Some(span);
        }
        let slices = class::slices(class);
        let kept = shared.kept[usize::from(slices > 1)].pop_front();
        let span = match kept.map(|span| self.table.keep(span)) {
            Some(span) => span,
            None => self.new_span(&mut shared, slices)?,
        };
        span.start(class, owner);
        self.give_aged(&mut shared);
        Some(span)
    }

    /// A span of so many slices that were not in use.
    pub(crate) fn new_span<'a>(&'a self, shared: &mut Shared, slices: usize) -> Option<&'a Span> {
        let first = shared.territory.take_slices(slices)?;
        for back in 0..slices {
            self.table.span(first + back).back.store(back as u8, Ordering::Relaxed);
        }
        let span = self.table.span(first);
        span.populated.set(0);
        span.is_full.set(false);
        span.is_clean.set(true);
        Some(span)
    }

    /// Takes an empty span back from its owner.
    pub(crate) fn give_span(&self, span: &Span) {
        let mut shared = self.shared.lock();
        self.keep_span(&mut shared, span);
        self.give_aged(&mut shared);
    }

    fn keep_span(&self, shared: &mut Shared, span: &Span) {
        let slices = class::slices(usize::from(span.class.get()));
        self.keep(&shared.kept[usize::from(slices > 1)], span);
    }

    /// Adds an empty span to a list of those that are kept.
    pub(crate) fn keep(&self, list: &List<Span>, span: &Span) {
        span.set_owner(ptr::null());
        span.kind.set(Kind::Kept);
        span.is_clean.set(false);
        // Of no other use while it is empty.
        span.freed.set(now());
        list.push_front(span);
    }

    /// Takes a span from a thread that is gone.
    pub(crate) fn give_up_span(&self, span: &Span) {
        span.collect();
        span.is_full.set(false);
        let mut shared = self.shared.lock();
        if span.is_empty() {
            return self.keep_span(&mut shared, span);
        }
        span.notify_at.set(u32::MAX);
        span.set_owner(ptr::null());
        shared.orphans[usize::from(span.class.get())].push_back(span);
    }

    /// Looks at the spans of a class that their threads have left: those that are empty by now are kept
    /// as such.
    fn look_at_orphans(&self, shared: &mut Shared, class: usize) {
        for _ in 0..shared.orphans[class].iter().count() {
            let Some(span) = shared.orphans[class].pop_front() else { return };
            let span = self.table.keep(span);
            span.collect();
            match span.is_empty() {
                true => self.keep_span(shared, span),
                false => shared.orphans[class].push_back(span),
            }
        }
    }

    /// Gives some of what was kept long enough back to the system.
    pub(crate) fn give_aged(&self, shared: &mut Shared) {
        let now = now();
        let mut left = GIVEN_AT_ONCE;
        for list in 0..shared.kept.len() + shared.kept_runs.len() {
            while left > 0
                && let Some(span) = kept_list(shared, list).last()
                && now.wrapping_sub(span.freed.get()) > KEPT_FOR
            {
                // Dropping an extent's memory is work for one call.
                left -= if list == EXTENTS { left } else { 1 };
                let span = self.table.keep(span);
                self.give_back(shared, list, span);
            }
        }
    }

    /// Gives back whatever this thread may give back that no block uses: its own spans and what the heap
    /// keeps.
    pub(crate) fn give_unused(&self) {
        if let Some(cache) = self.cache() {
            cache.release_empty();
        }
        self.give_kept();
    }

    /// The same, and the addresses of freed blocks that are kept out of use. An allocation that found no room
    /// does this before it tries for the last time.
    pub(crate) fn make_room(&self) {
        self.give_unused();
        self.release_quarantine();
    }

    /// Gives all that is kept back to the system, and what threads that are gone have left.
    pub(crate) fn give_kept(&self) {
        let mut shared = self.shared.lock();
        for class in 0..class::COUNT {
            self.look_at_orphans(&mut shared, class);
        }
        for list in 0..shared.kept.len() + shared.kept_runs.len() {
            while let Some(span) = kept_list(&shared, list).last() {
                let span = self.table.keep(span);
                self.give_back(&mut shared, list, span);
            }
        }
    }

    /// Gives a kept span's memory to the system, and its address space to the territory.
    pub(crate) fn give_back(&self, shared: &mut Shared, list: usize, span: &Span) {
        kept_list(shared, list).remove(span);
        if list == EXTENTS {
            return self.give_extent(&mut shared.territory, span);
        }
        let address = self.table.address_of(span);
        let slices = match list {
            0 => {
                self.pages.discard_populated(address, usize::from(span.populated.get()));
                1
            }
            1 => {
                self.pages.discard_lent(address, usize::from(span.populated.get()));
                8
            }
            run => {
                self.pages.discard_lent(address, span.carved.get() as usize);
                run - FIRST_RUN
            }
        };
        span.kind.set(Kind::None);
        shared.territory.give_slices(self.table.slice_of(span), slices);
    }

    /// Blocks of a span that were never handed out, as a list; null if there are none, or no memory
    /// for them.
    pub(crate) fn carve(&self, span: &Span) -> *mut Block {
        let class = usize::from(span.class.get());
        let size = class::size(class);
        let capacity = (class::slices(class) << SLICE_SHIFT) / size;
        let carved = span.carved.get() as usize;
        if carved == capacity {
            return ptr::null_mut();
        }
        // As much again, so that a span that is used little takes little.
        let page = 1 << self.pages.shift;
        let step = (carved * size).clamp(page, 4 * page) / size;
        let count = step.clamp(1, capacity - carved);
        if !self.provide(span, (carved + count) * size) {
            return ptr::null_mut();
        }
        span.carved.set((carved + count) as u32);
        let first = self.table.address_of(span) + carved * size;
        let mut list = ptr::null_mut();
        for index in (0..count).rev() {
            let block = ptr::with_exposed_provenance_mut::<Block>(first + index * size);
            // SAFETY: the block was never handed out, and there is memory behind it.
            unsafe { Block::link(block, list) };
            list = block;
        }
        list
    }

    /// Makes sure that the first `bytes` bytes of a span are charged, and, for small blocks, present.
    fn provide(&self, span: &Span, bytes: usize) -> bool {
        let needed = self.pages.of(bytes);
        let provided = usize::from(span.populated.get());
        if needed <= provided {
            return true;
        }
        let small = class::slices(usize::from(span.class.get())) == 1;
        let address = self.table.address_of(span) + (provided << self.pages.shift);
        let done = match small {
            true => self.pages.populate(address, needed - provided),
            false => self.pages.lend(needed - provided),
        };
        if done {
            span.populated.set(needed as u16);
        }
        done
    }
}

/// The lists of what is kept, one after another.
pub(crate) fn kept_list(shared: &Shared, list: usize) -> &List<Span> {
    match list.checked_sub(FIRST_RUN) {
        None => &shared.kept[list],
        Some(run) => &shared.kept_runs[run],
    }
}

/// Milliseconds, of a clock that costs nothing to read.
fn now() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    (time.tv_sec as u32).wrapping_mul(1000).wrapping_add(time.tv_nsec as u32 / 1_000_000)
}
