//! Checkpoints: remembering what an arena holds.

use super::{Arena, descriptors, inherit};
use crate::Errno;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::admit::{drop_saved, protect, save};
use crate::fault::backend::Backend;
use crate::fault::bits::Snapshot;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::fault::track::{Marks, Tracking};
use crate::lock::MutexGuard;
use crate::sys;

/// Runs of pages that are protected one by one where all of a chunk can be protected at once, which takes
/// hardly longer than one.
const FEW_RUNS: usize = 1;

impl Arena {
    /// Remembers what the arena holds now; from here on writes are tracked, until
    /// [`forget_checkpoint`](Self::forget_checkpoint). [`written`](Self::written) tells what was written
    /// since, and [`rollback`](Self::rollback) comes back to it, any number of times.
    ///
    /// A second call replaces the checkpoint, at a cost in proportion to what was written since the first.
    /// The first costs in proportion to what is present: its pages are write-protected, and with
    /// [`Tracking::Kernel`] copied; see [`Tracking`] for what writes cost then. What is copied takes
    /// memory, [`Stats::checkpoint_bytes`](crate::Stats::checkpoint_bytes), that is not charged to the
    /// budget.
    ///
    /// While there is a checkpoint, nothing is lent, no new huge page is made (those that are there are
    /// protected whole, and split by a write), and reading an untouched page of zeroes takes memory.
    ///
    /// Other threads may go on writing, but which of two states a page is remembered in that is written
    /// meanwhile is not specified, nor is a page remembered whole: let writers be quiet if it is to be rolled
    /// back to.
    ///
    /// A forked child has no checkpoint of its parent's; it may make its own.
    ///
    /// # Errors
    /// If it fails, there is no checkpoint, not even the one before.
    /// - [`ErrorKind::NeedsUserfaultfd`]: the arena has [`Backend::Mprotect`].
    /// - [`ErrorKind::Conflict`]: the arena is of huge pages or of shared memory, or its template is one that
    ///   arenas share ([`Template::shared`](crate::Template::shared)).
    /// - [`ErrorKind::Unsupported`]: the kernel has no write protection by userfaultfd (before Linux 5.7, or
    ///   not on this machine), or [`Tracking::Kernel`] was asked for and it is older than 6.7.
    /// - [`ErrorKind::Os`] with `ENOMEM`: there is no memory, or no address space.
    /// - [`ErrorKind::Os`] with `EMFILE`: no descriptor is left. With `EPERM` or `ENOSYS`: a seccomp filter
    ///   denies process_vm_readv(2) of the own process.
    /// - [`ErrorKind::NotInherited`], [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see
    ///   [`Arena`].
    ///
    /// ```
    /// use lacuna::{Arena, Backend};
    ///
    /// let arena = Arena::builder(1 << 30).backend(Backend::Userfaultfd).reserve()?;
    /// let page = lacuna::page_size();
    /// // SAFETY: the offsets are within the arena, and nobody else uses it.
    /// unsafe {
    ///     arena.as_ptr().write(1);
    ///     arena.checkpoint()?;
    ///     arena.as_ptr().add(5 * page).write(2);
    ///     assert_eq!(arena.written()?, [5 * page..6 * page]);
    ///     arena.as_ptr().write(3);
    ///     arena.rollback()?;
    ///     assert_eq!((arena.as_ptr().read(), arena.as_ptr().add(5 * page).read()), (1, 0));
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn checkpoint(&self) -> Result<()> {
        self.check_inherited(Operation::Checkpoint)?;
        let region = self.region();
        let error = |kind| Err(Error::new(Operation::Checkpoint, kind));
        if region.backend == Backend::Mprotect {
            return error(ErrorKind::NeedsUserfaultfd);
        }
        if !region.backing.is_ordinary() || region.source.shared_pages() > 0 {
            return error(ErrorKind::Conflict);
        }
        if region.tracking == Tracking::Kernel && !descriptors::notes_writes() {
            return error(ErrorKind::Unsupported);
        }
        let _busy = region.track.busy.lock();
        let blocked = SignalsBlocked::as_in_handler();
        let result = match region.track.is_on() {
            true => self.renew(&blocked),
            false => self.start_tracking().and_then(|()| self.adopt_all(&blocked)),
        };
        // Half of one would be none.
        result.inspect_err(|_| self.stop_tracking())
    }

    /// Ends what [`checkpoint`](Self::checkpoint) began: writes are no longer tracked, and the memory of the
    /// checkpoint is given back. What the arena holds stays. Without a checkpoint it does nothing.
    ///
    /// In a child that was forked without hooks it does nothing either.
    ///
    /// ```
    /// use lacuna::{Arena, Backend, ErrorKind};
    ///
    /// let arena = Arena::builder(1 << 30).backend(Backend::Userfaultfd).reserve()?;
    /// arena.checkpoint()?;
    /// arena.forget_checkpoint();
    /// assert_eq!(arena.written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn forget_checkpoint(&self) {
        if inherit::check(Operation::Checkpoint).is_ok() {
            let _busy = self.region().track.busy.lock();
            let _blocked = SignalsBlocked::as_in_handler();
            self.stop_tracking();
        }
    }

    /// Locks the checkpoint, or says that there is none.
    pub(super) fn locked(&self, operation: Operation) -> Result<MutexGuard<'_, ()>> {
        let busy = self.region().track.busy.lock();
        match self.region().track.is_on() {
            true => Ok(busy),
            false => Err(Error::new(operation, ErrorKind::NoCheckpoint)),
        }
    }

    /// Makes the first checkpoint, of all that is present.
    fn adopt_all(&self, blocked: &SignalsBlocked) -> Result<()> {
        self.region().track.set_cool(false);
        self.recall_from(Operation::Checkpoint, 0)?;
        let mut adopter = Adopter::new(self.region())?;
        let mut from = 0;
        while let Some(index) = self.region().tables.summary().next(from) {
            self.adopt(blocked, index, &mut adopter)?;
            from = index + 1;
        }
        Ok(())
    }

    /// Brings the checkpoint up to what is there now.
    fn renew(&self, blocked: &SignalsBlocked) -> Result<()> {
        self.region().track.set_cool(false);
        self.harvest(Operation::Checkpoint)?;
        let mut adopter = Adopter::new(self.region())?;
        let mut from = 0;
        while let Some(index) = self.next_touched(from) {
            self.adopt(blocked, index, &mut adopter)?;
            from = index + 1;
        }
        Ok(())
    }

    fn adopt(&self, blocked: &SignalsBlocked, index: usize, adopter: &mut Adopter) -> Result<()> {
        self.as_owner(blocked, index, |region, chunk| adopter.adopt(region, chunk))
            .unwrap_or(Ok(()))
            .map_err(|errno| Error::os(Operation::Checkpoint, errno))
    }

    /// The first chunk at or after `from` that has to be looked at since the checkpoint.
    pub(super) fn next_touched(&self, from: usize) -> Option<usize> {
        self.region().touched()?.next(from)
    }
}

/// Takes chunks as they are into the checkpoint.
struct Adopter {
    /// Room for a page that may be zeroes.
    page: Vec<u8>,
}

impl Adopter {
    fn new(region: &Region) -> Result<Self> {
        let size = 1 << region.page_shift;
        let mut page = Vec::new();
        let error = Error::os(Operation::Checkpoint, Errno::ENOMEM);
        page.try_reserve_exact(size).map_err(|_| error)?;
        page.resize(size, 0);
        // A filter that denies it is met here, and not by the handler.
        // SAFETY: the buffer is so long; it is copied to itself.
        unsafe { sys::copy_out(page.as_mut_ptr(), page.as_ptr().expose_provenance(), size) }
            .map_err(|errno| Error::os(Operation::Checkpoint, errno))?;
        Ok(Self { page })
    }

    /// As the chunk's owner: what changed since the last checkpoint is protected again, and saved.
    fn adopt(&mut self, region: &Region, chunk: &Chunk<'_>) -> Result<(), Errno> {
        let Some(marks) = region.marks(chunk.index) else { return Ok(()) };
        let present = chunk.present();
        let written = marks.written.load().union(&marks.hot.load());
        let changed = present.and(&written).union(&present.minus(&marks.held.load()));
        // First: what is written from here on is seen, whatever is copied of it. No other: one that was
        // written since it was asked is not copied, and must be found the next time.
        protect_set(region, chunk, &changed, false)?;
        marks.saved.remove(&changed);
        if region.track.is_by_kernel() {
            self.save(region, chunk, marks, &changed)?;
        }
        let gone = marks.held.load().union(&marks.saved.load()).minus(&present);
        drop_saved(region, chunk, marks, &gone);
        marks.held.assign(&present);
        for bits in [&marks.written, &marks.hot, &marks.before] {
            bits.assign(&Snapshot::EMPTY);
        }
        if let Some(touched) = region.touched() {
            touched.clear(chunk.index);
        }
        Ok(())
    }

    /// Copies pages to the shadow. Those that may be the kernel's zero page need none there.
    fn save(
        &mut self,
        region: &Region,
        chunk: &Chunk<'_>,
        marks: &Marks,
        pages: &Snapshot,
    ) -> Result<(), Errno> {
        let resident = pages.and(&chunk.resident.load());
        resident.runs().try_for_each(|run| save(region, chunk, marks, run))?;
        let first = region.pages_of(chunk.index).start;
        for page in pages.minus(&resident).runs().flatten() {
            let alone = page..page + 1;
            if !marks.stored.get(page) && self.is_zero(region.address_of(first + page)) {
                marks.saved.set(alone);
            } else {
                save(region, chunk, marks, alone)?;
            }
        }
        Ok(())
    }

    /// Whether a page of the arena is there and holds zeroes.
    fn is_zero(&mut self, address: usize) -> bool {
        let len = self.page.len();
        // SAFETY: the buffer is so long.
        let copied = unsafe { sys::copy_out(self.page.as_mut_ptr(), address, len) };
        copied == Ok(len) && self.page.iter().all(|byte| *byte == 0)
    }
}

/// Protects pages of a chunk, all of them present, as its owner; those beside them may be protected
/// as well if `all` may be.
pub(super) fn protect_set(
    region: &Region,
    chunk: &Chunk<'_>,
    pages: &Snapshot,
    all: bool,
) -> Result<(), Errno> {
    let whole = region.pages_of(chunk.index);
    let scans = all && region.track.is_by_kernel() && chunk.count_present() == whole.len();
    if scans && pages.runs().nth(FEW_RUNS).is_some() {
        return descriptors::pagemap()?.protect(region, whole);
    }
    pages.runs().try_for_each(|run| protect(region, chunk, run))
}
