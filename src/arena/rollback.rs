//! Coming back to the checkpoint.
//!
//! Pages are written by ordinary stores, outside of their chunk: should one have been dropped
//! behind our back, the store faults, and that must not happen to a thread that a fork waits for.
//! What changes which pages are present or protected is done as the chunk's owner.

use super::Arena;
use super::checkpoint::protect_set;
use super::restore::{Plan, Restored};
use crate::Errno;
use crate::atomic::Ordering;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::bits::Snapshot;
use crate::fault::ledger::Charge;
use crate::fault::lend::is_exhausted;
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::fault::uffd;
use crate::sys::pause;
use crate::uffd::CopyMode;
use core::ops::Range;
use core::ptr;

impl Arena {
    /// Brings everything back to the [`checkpoint`](Self::checkpoint), which stays: what was
    /// written is restored, what was discarded is present again, and what was not present then is
    /// given back. It costs in proportion to what was written, with
    /// [`Tracking::Kernel`](crate::Tracking::Kernel) plus a scan of what is present.
    ///
    /// A page that was written in two rounds running, from one rollback to the next, is *hot*: it stays
    /// present and unprotected from then on, and is compared and restored each time, so that a workload that
    /// writes the same pages each round pays neither faults nor system calls for them. A hot page
    /// that a round did not write is watched again.
    ///
    /// Pages past a limit that was lowered since come back as well. Budget is needed for those pages alone
    /// that were discarded.
    ///
    /// # Errors
    /// If it fails half-way, some pages are restored and the rest are not; it can be called again.
    /// - [`ErrorKind::NoCheckpoint`]: there is none.
    /// - [`ErrorKind::BudgetExhausted`]: the budget has no room for what was discarded.
    /// - [`ErrorKind::Os`] with `ENOMEM`: there is no memory. With `EINVAL`: what is to be given
    ///   back is locked in memory (mlock(2)).
    /// - [`ErrorKind::Os`] with `EMFILE` or another: `/proc/self/pagemap` cannot be read.
    /// - [`ErrorKind::NotInherited`], [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see
    ///   [`Arena`].
    ///
    /// # Safety
    /// The content of the arena changes: no reference to memory in it may be alive, and what is read from it
    /// afterwards must be valid as the checkpoint has it (if other threads were writing while that was made,
    /// it may have pages in the midst of a change). Nobody else may access the arena meanwhile, nor populate
    /// or discard.
    ///
    /// ```
    /// use lacuna::{Arena, Backend};
    ///
    /// let arena = Arena::builder(1 << 30).backend(Backend::Userfaultfd).reserve()?;
    /// // SAFETY: the first byte is the arena's, and nobody holds a reference to it.
    /// unsafe {
    ///     arena.as_ptr().write(7);
    ///     arena.checkpoint()?;
    ///     for round in 0..10 {
    ///         assert_eq!(arena.as_ptr().read(), 7);
    ///         arena.as_ptr().write(round);
    ///         arena.rollback()?;
    ///     }
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub unsafe fn rollback(&self) -> Result<()> {
        self.check_inherited(Operation::Rollback)?;
        let _busy = self.locked(Operation::Rollback)?;
        let blocked = SignalsBlocked::as_in_handler();
        self.harvest(Operation::Rollback)?;
        // Relaxed: changed by holders of the lock.
        let round = self.region().track.round.load(Ordering::Relaxed) + 1;
        // First, since it makes room in the budget.
        // SAFETY: as the caller promises.
        unsafe { self.discard_new(round)? };
        // SAFETY: as the caller promises.
        unsafe { self.restore_all(&blocked, round)? };
        self.region().track.round.store(round, Ordering::Relaxed);
        Ok(())
    }

    /// Discards what was not present at the checkpoint, and is not to stay.
    ///
    /// # Safety
    /// As for `rollback`.
    unsafe fn discard_new(&self, round: u64) -> Result<()> {
        let region = self.region();
        let mut pending = Pending { pages: 0..0, open: false, chunk: 0 };
        let mut written = Vec::new();
        let mut from = 0;
        while let Some(index) = self.next_touched(from) {
            from = index + 1;
            let Some(plan) = Plan::of(region, index, round) else { continue };
            let first = region.pages_of(index).start;
            let kept = plan.present.minus(&plan.new);
            let lost = plan.written.and(&plan.new);
            if !lost.is_empty() {
                written.push((index, lost));
            }
            let mut at = 0;
            for run in plan.new.runs() {
                let pages = first + run.start..first + run.end;
                // Nothing that is to stay lies between it and the run before.
                let joins = pending.reaches(index) && kept.next_set(at..run.start) == run.start;
                let start = if joins { pending.pages.start } else { pages.start };
                if !joins {
                    // SAFETY: as the caller promises.
                    unsafe { self.discard_pages(&pending.pages)? };
                }
                pending = Pending { pages: start..pages.end, open: true, chunk: index };
                at = run.end;
            }
            let end = region.pages_of(index).len();
            pending.open &= pending.chunk == index && kept.next_set(at..end) == end;
        }
        // SAFETY: as the caller promises.
        unsafe { self.discard_pages(&pending.pages)? };
        // That this round has written them is to be known in the next.
        for (index, lost) in &written {
            region.touch(*index, Some(lost));
        }
        Ok(())
    }

    /// # Safety
    /// As for `rollback`.
    unsafe fn discard_pages(&self, pages: &Range<usize>) -> Result<()> {
        let shift = self.region().page_shift;
        match pages.is_empty() {
            true => Ok(()),
            // SAFETY: as the caller promises.
            false => unsafe { self.discard(pages.start << shift..pages.end << shift) },
        }
    }

    /// Restores the pages of all chunks, some chunks at a time: first copies, then protects. Protecting flushes
    /// what the processor knows of where memory is, which would slow down each copy that comes after it.
    ///
    /// # Safety
    /// As for `rollback`.
    unsafe fn restore_all(&self, blocked: &SignalsBlocked, round: u64) -> Result<()> {
        let region = self.region();
        let mut plans = Vec::with_capacity(BATCH);
        let mut done = Vec::with_capacity(BATCH);
        let mut from = 0;
        loop {
            while plans.len() < BATCH
                && let Some(index) = self.next_touched(from)
            {
                plans.extend(Plan::of(region, index, round));
                from = index + 1;
            }
            if plans.is_empty() {
                return Ok(());
            }
            // SAFETY: as the caller promises, who has locked the checkpoint.
            unsafe {
                plans.iter().for_each(|plan| plan.approach(region));
                done.extend(plans.iter().map(|plan| plan.restore(region, round)));
            }
            for (plan, done) in plans.drain(..).zip(done.drain(..)) {
                self.settle(blocked, &plan, &done)?;
            }
        }
    }

    /// Has the chunk of a plan be as the checkpoint has it, once the plan's pages are restored.
    fn settle(&self, blocked: &SignalsBlocked, plan: &Plan<'_>, done: &Restored) -> Result<()> {
        let marks = plan.marks;
        if !plan.gone.is_empty() {
            self.bring_back(blocked, plan.index, &plan.gone)?;
        }
        if done.cold.is_empty() && !done.hot.is_empty() {
            // The next rollback looks here again, and there is nothing else to do.
            marks.written.remove(&plan.written);
            return Ok(());
        }
        let settle = |region: &Region, chunk: &Chunk<'_>| -> Result<(), Errno> {
            protect_set(region, chunk, &done.cold, done.hot.is_empty())?;
            marks.written.remove(&plan.written.union(&done.cold));
            // What stayed for being hot and is not any more goes next time.
            let stays = done.cold.minus(&plan.held);
            let over = done.hot.is_empty() && stays.is_empty();
            if let Some(touched) = region.touched().filter(|_| over) {
                touched.clear(plan.index);
            }
            Ok(())
        };
        self.as_owner(blocked, plan.index, settle)
            .unwrap_or(Ok(()))
            .map_err(|errno| Error::os(Operation::Rollback, errno))
    }

    /// Installs what the checkpoint has of pages that were discarded.
    fn bring_back(&self, blocked: &SignalsBlocked, index: usize, gone: &Snapshot) -> Result<()> {
        const ATTEMPTS: u32 = 1000;
        let error = |errno| Error::os(Operation::Rollback, errno);
        let mut attempts = ATTEMPTS;
        loop {
            let install = |region: &Region, chunk: &Chunk<'_>| install(region, chunk, gone);
            match self.as_owner(blocked, index, install).unwrap_or(Ok(())) {
                Ok(()) => return Ok(()),
                Err(Lack::Passing(errno)) if attempts == 0 => return Err(error(errno)),
                Err(Lack::Passing(_)) => {
                    attempts -= 1;
                    pause(10_000);
                }
                Err(Lack::Budget) if !is_exhausted(&self.pin()) => {}
                Err(Lack::Budget) => {
                    return Err(Error::new(Operation::Rollback, ErrorKind::BudgetExhausted));
                }
                Err(Lack::Final(errno)) => return Err(error(errno)),
            }
        }
    }
}

/// Chunks that are copied before they are protected.
const BATCH: usize = 64;

/// Pages to discard by one call.
struct Pending {
    pages: Range<usize>,
    /// Whether nothing that is to stay lies between them and the end of the chunk that they end in.
    open: bool,
    chunk: usize,
}

impl Pending {
    /// Whether they may go on in chunk `index`.
    fn reaches(&self, index: usize) -> bool {
        !self.pages.is_empty() && self.open && (self.chunk == index || self.chunk + 1 == index)
    }
}

/// Why pages could not be installed.
enum Lack {
    Budget,
    /// For a reason that may pass.
    Passing(Errno),
    Final(Errno),
}

/// Installs the absent ones of `pages` from the shadow, as the chunk's owner.
fn install(region: &Region, chunk: &Chunk<'_>, pages: &Snapshot) -> Result<(), Lack> {
    let first = region.pages_of(chunk.index).start;
    let mut missing = pages.minus(&chunk.present());
    while let Some(run) = missing.runs().next() {
        let promised = match region.ledger.charge(run.len() as u64, region.budget) {
            Charge::Promised(promised) => promised,
            Charge::Pending => return Err(Lack::Passing(Errno::EAGAIN)),
            Charge::Exhausted => return Err(Lack::Budget),
        };
        let (at, len) = (first + run.start, (promised as usize) << region.page_shift);
        region.tables.summary().set(chunk.index);
        let target = ptr::with_exposed_provenance_mut(region.address_of(at));
        let mode = CopyMode::DONTWAKE | CopyMode::WP;
        let progress = uffd().map(|uffd| {
            // SAFETY: the target lies in a reservation of ours, and is absent; the shadow has the pages.
            unsafe { uffd.copy(target, region.shadow_of(at).cast_const(), len, mode) }
        });
        let done = progress.map_or(0, |it| it.bytes() >> region.page_shift);
        chunk.resident.set(run.start..run.start + done);
        region.ledger.settle(promised, done as u64, 0);
        match progress.map_or_else(Some, |it| it.errno()) {
            None => {}
            Some(Errno::EAGAIN) if done > 0 => {}
            Some(errno @ (Errno::EAGAIN | Errno::EINTR)) => return Err(Lack::Passing(errno)),
            Some(errno) => return Err(Lack::Final(errno)),
        }
        missing = pages.minus(&chunk.present());
    }
    Ok(())
}
