//! Arenas: reservations, and everything that governs them.

mod builder;
mod change;
mod check;
mod checkpoint;
mod choice;
mod descriptors;
mod discard;
mod engine;
mod former;
mod front;
mod hand_over;
mod inherit;
mod mapping;
mod measure;
mod memory;
mod move_pages;
mod mprotect;
mod poison;
mod populate;
mod publish;
mod read_ahead;
mod record;
mod registrar;
mod relocate;
mod replay;
mod reset;
mod restore;
mod rollback;
mod runs;
mod save;
mod shadow;
mod shared;
mod stats;
mod template;
mod trace;
mod written;

pub use builder::ArenaBuilder;
pub use check::check_thread;
pub use front::{is_in_front, take_front};
pub use memory::PageSize;
pub use replay::Replayed;
pub use runs::Populated;
pub use save::Saved;
pub use stats::Stats;
pub use template::Template;
pub use trace::{Touched, Trace};

pub(crate) use front::catch_segv;
pub(crate) use mapping::Mapping;
pub(crate) use stats::Bytes;

use crate::atomic::{AtomicU32, Ordering, UnsafeCell, fence};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::mappings::MAPPINGS;
use crate::fault::region::Region;
use crate::fault::track::Tracking;
use crate::lock::Mutex;
use crate::page::round_up;
use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use registrar::{REGISTRAR, Seat};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A reservation of address space whose pages come into being when they are touched, with the
/// content of a [`Template`], within a budget and a limit.
///
/// Touching it, from any thread, is plain memory access; the SIGBUS handler of the touching thread
/// resolves the page. What cannot be resolved (past the limit, over the budget, an unreadable
/// template) is a violation, which ends the process; see [`Violation`](crate::Violation).
///
/// **System calls do not see untouched pages**: read(2) into one fails with EFAULT.
/// [`populate`](Self::populate) a range before the kernel gets it.
///
/// Signal handlers may touch an arena as well. They must not call its methods, which may wait for a
/// fault that the handler interrupted, nor fork. Where another thread forks, a first touch waits until
/// that is over, and the C library's fork waits for its allocator's locks: a handler on top of malloc that
/// touches an untouched page meanwhile never returns. Populate what such a handler needs.
///
/// # Locked memory
/// mlockall(2) with `MCL_FUTURE` neither locks nor fills an arena, since that would mean all of its
/// address space. `MCL_CURRENT` locks and fills what is lent, and lacuna's tables (some 200 bytes for
/// each 2 MiB that is reserved); and it locks the pages that are present and those that come later, as
/// does mlock(2), which answers `ENOMEM` where some are not. Locked pages cannot be discarded before
/// munlock(2), and arenas with locked pages hardly get huge ones.
///
/// # Forked children
/// A child of fork(3) gets of each arena what [`ArenaBuilder::on_fork`] says: a copy by default, with a
/// budget and counters of its own. It needs a descriptor for that; if it cannot have one, it is told
/// so on stderr, a touch of an arena is a SIGSEGV, and methods fail with [`ErrorKind::NotRearmed`].
///
/// Children that share the memory until they call exec (vfork(2), posix_spawn(3), and so
/// [`Command`](std::process::Command)) share the arenas as well.
///
/// A child with a copy of the memory that is made **without the C library's fork hooks** (a raw
/// clone(2), or glibc's `_Fork`) cannot use arenas. Methods fail with
/// [`ErrorKind::ForkedWithoutHooks`], and nothing the child does reaches its parent. But the kernel
/// raises no signal there: pages that the parent had not touched **read as zeroes**, whatever the
/// template, and nothing can notice. Such a child should call exec or exit.
///
/// An arena is `Send` and `Sync`: what is in it is behind a raw pointer, and whoever accesses it
/// answers for data races as with any memory.
///
/// ```
/// let arena = lacuna::Arena::builder(1 << 40).name("index").reserve()?;
/// // SAFETY: the offset is within the arena, and nobody else uses the arena.
/// unsafe { arena.as_ptr().add(1 << 39).write(7) };
/// assert_eq!(arena.stats().resident_bytes, lacuna::page_size());
/// # Ok::<(), lacuna::Error>(())
/// ```
pub struct Arena {
    seat: &'static Seat,
    base: NonNull<u8>,
    span: usize,
    /// Pages that `reset` keeps at most.
    keep_resident: usize,
    /// What the checkpoint lies in; whoever holds `Track::busy` may look at it.
    checkpoint: UnsafeCell<Option<shadow::Shadow>>,
    /// Times that `reset` has found chunks of a shared image lent, since they were.
    resets: AtomicU32,
    /// What first touches are being recorded in. Locked only while the registrar is, and so by nobody
    /// when a process forks.
    recording: Mutex<Option<Mapping>>,
    // Dropped in this order, after the region is retired: what the handler reads goes last.
    _reservation: Mapping,
    _tables: Mapping,
    /// The memory, if it is shared with other processes.
    file: Option<OwnedFd>,
    _content: builder::Content,
    _template: Template,
}

// SAFETY: the base is an address range that the arena owns; all bookkeeping is atomic or locked, the
// checkpoint by a lock of the region's.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Starts to make an arena of `len` bytes, rounded up to whole pages.
    pub const fn builder<'a>(len: usize) -> ArenaBuilder<'a> {
        ArenaBuilder::new(len)
    }

    /// The first byte, aligned to 2 MiB.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes of the arena, whole pages.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an arena has at least one page")]
    pub fn len(&self) -> usize {
        let region = self.region();
        region.pages << region.page_shift
    }

    /// The name given to the builder.
    #[must_use]
    pub fn name(&self) -> &str {
        self.region().name.as_str()
    }

    /// How the arena learns of first touches.
    #[must_use]
    pub fn backend(&self) -> Backend {
        self.region().backend
    }

    /// How the arena learns of writes since a [`checkpoint`](Self::checkpoint).
    #[must_use]
    pub fn tracking(&self) -> Tracking {
        self.region().tracking
    }

    /// Bytes of a page of this arena: those of the system's base page, unless
    /// [`ArenaBuilder::page_size`] said otherwise.
    #[must_use]
    pub fn page_size(&self) -> usize {
        1 << self.region().page_shift
    }

    /// The file that is the arena's memory, if that is shared
    /// ([`ArenaBuilder::share`], [`ArenaBuilder::memfd`]): to hand to another process by `SCM_RIGHTS`
    /// (unix(7)), to a child by inheritance (it is close-on-exec), or by `/proc/PID/fd`.
    ///
    /// What is written to it by write(2) is in the arena. Cutting it short makes touches past its
    /// new end violations; one that [`ArenaBuilder::share`] made cannot be.
    #[must_use]
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// The prefix that may be touched, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        let region = self.region();
        region.limit() << region.page_shift
    }

    /// Moves the limit to `bytes`, rounded up to whole pages: what lies before it may be touched,
    /// what lies past it may not. Raising it is one atomic store and no
    /// system call.
    ///
    /// The limit governs *first* touches. A lower limit leaves pages past it that are present
    /// already as they are; discard them to have touching them be a violation. Lent chunks past it
    /// are recalled.
    ///
    /// # Errors
    /// - [`ErrorKind::LimitPastLength`]: the arena is shorter.
    /// - [`ErrorKind::Os`]: the limit is lower now, but a lent chunk past it could not be recalled.
    /// - [`ErrorKind::NotInherited`]: a forked child must not touch the arena, whose limit is 0 there.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see [`Arena`].
    ///
    /// ```
    /// let memory = lacuna::Arena::builder(8 << 30).limit(64 << 10).reserve()?;
    /// memory.set_limit(128 << 10)?;
    /// assert_eq!(memory.limit(), 128 << 10);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn set_limit(&self, bytes: usize) -> Result<()> {
        self.check_inherited(Operation::SetLimit)?;
        let error = Error::new(Operation::SetLimit, ErrorKind::LimitPastLength).value(bytes);
        let pages = builder::limit_pages(bytes, self.len(), self.region().page_shift);
        let pages = pages.ok_or(error)?;
        // Relaxed: see `Region::limit`.
        let before = self.region().limit.swap(pages, Ordering::Relaxed);
        // The same once more: chunks may be lent past it that could not be recalled before.
        if pages > before || !self.region().lends {
            return Ok(());
        }
        // Pairs with the fence in `lend`: a chunk that is being lent by the old limit is marked.
        fence(Ordering::SeqCst);
        self.recall_from(Operation::SetLimit, pages)
    }

    /// Numbers about the arena; a few loads, no system call.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::of(self.region())
    }

    /// The smallest range of whole pages that covers `bytes`, cut at the end of the arena: what to
    /// [`populate`](Self::populate) before a system call gets a buffer.
    ///
    /// ```
    /// use std::io::Read;
    ///
    /// let arena = lacuna::Arena::builder(1 << 40).reserve()?;
    /// arena.populate(arena.covering(100..612))?;
    /// // SAFETY: the bytes are within the arena, zeroed, and nobody else uses them.
    /// let buffer = unsafe { std::slice::from_raw_parts_mut(arena.as_ptr().add(100), 512) };
    /// let read = std::fs::File::open("Cargo.toml")?.read(buffer)?;
    /// assert_eq!(&buffer[..9], b"[package]");
    /// # Ok::<(), std::io::Error>(())
    /// ```
    #[must_use]
    pub fn covering(&self, bytes: Range<usize>) -> Range<usize> {
        let page = self.page_size();
        let end = round_up(bytes.end, page).unwrap_or(self.len()).min(self.len());
        (bytes.start - bytes.start % page).min(end)..end
    }

    fn region(&self) -> &Region {
        // SAFETY: the value was put there when the arena was made and goes when it does.
        let region = self.seat.entry.value.with(|value| unsafe { (*value).as_ref() });
        region.expect("an arena's region is published for as long as the arena lives")
    }

    /// Fails where no page of the arena may appear.
    fn check_inherited(&self, operation: Operation) -> Result<()> {
        inherit::check(operation)?;
        match self.region().is_forbidden() {
            true => Err(Error::new(operation, ErrorKind::NotInherited)),
            false => Ok(()),
        }
    }

    /// `range` in pages, checked.
    fn pages(&self, operation: Operation, range: &Range<usize>) -> Result<Range<usize>> {
        let error = |kind| Err(Error::new(operation, kind).range(range.start, range.end));
        if range.start > range.end || range.end > self.len() {
            return error(ErrorKind::OutOfBounds);
        }
        if (range.start | range.end) & (self.page_size() - 1) != 0 {
            return error(ErrorKind::Unaligned);
        }
        let shift = self.region().page_shift;
        Ok(range.start >> shift..range.end >> shift)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if inherit::check(Operation::Reserve).is_err() {
            // Nobody may be left to unlock it; then the handler goes on taking these addresses for
            // an arena's, and every signal there for a violation.
            if let Some(mut registrar) = REGISTRAR.try_lock() {
                registrar.abandon(self.base.as_ptr().addr(), self.span);
            }
            return;
        }
        let mut registrar = REGISTRAR.lock();
        MAPPINGS.forget(self.region());
        // SAFETY: the seat came from `publish`, with this span, and the arena is dropped once.
        unsafe { registrar.retire(self.seat, self.span) };
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("name", &self.name())
            .field("base", &self.base)
            .field("stats", &self.stats())
            .finish()
    }
}
