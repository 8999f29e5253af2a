//! Moving pages between places of arenas without copying them.
//!
//! It goes step by step, each within one chunk of the source and one of the target, both of which are owned
//! meanwhile: whoever touches either steps back. `relocate.rs` does what a step asks of the kernel; here is
//! who may ask, and the books.

use super::discard::{empty_part, forget_if_empty};
use super::relocate::{self, Place, differs};
use super::{Arena, mprotect};
use crate::Errno;
use crate::atomic::{Ordering, fence};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::REGISTRY;
use crate::fault::backend::Backend;
use crate::fault::ledger::Charge;
use crate::fault::lend;
use crate::fault::region::Region;
use crate::fault::registry::{Lookup, Pinned};
use crate::fault::signals::SignalsBlocked;
use crate::fault::tables::Chunk;
use crate::fork::current_thread;
use crate::page::page_size;
use crate::sys::pause;
use core::ops::Range;
use core::ptr;

/// Why a step did not succeed.
enum Cause {
    Poisoned,
    /// A checkpoint was made meanwhile.
    Tracked,
    Os(Errno),
    /// Pages of the source have to be populated first.
    Absent,
    /// The target's budget has no room, some of it maybe because of lent chunks.
    Exhausted,
    /// The rest of the budget is promised to others, who may give it back.
    Pending,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Os(errno)
    }
}

/// One step, in pages of the two reservations.
struct Step {
    from: usize,
    to: usize,
    len: usize,
}

impl Arena {
    /// Moves the content of `from` (bytes, whole pages) to the bytes from `at` on of `to`, which may be the
    /// same arena: afterwards the target reads as the source did, and the source is untouched again, its
    /// template. What the target held is gone.
    ///
    /// Memory is moved without being copied, by UFFDIO_MOVE (since Linux 6.8): some 0.1 microseconds a page,
    /// and a 2 MiB page as a whole where both offsets are multiples of 2 MiB. Pages that the kernel does not
    /// move are copied: those shared with a forked child, pinned by a system call, or locked in one place
    /// only; and all of them on older kernels and with [`Backend::Mprotect`]. Untouched pages of the source
    /// cost nothing where both templates are zero there; elsewhere they are populated before they are moved.
    ///
    /// What is moved is charged to the target's budget before it is taken from the source's. Between arenas,
    /// the target needs room for it; within one arena, nothing changes.
    ///
    /// # Errors
    /// If it fails half-way, each page has been moved or has not, and the counters are exact; what the
    /// target held may be gone, up to 2 MiB further than the pages that were moved.
    /// - [`ErrorKind::OutOfBounds`], [`ErrorKind::Unaligned`], [`ErrorKind::Overlap`]: no such ranges.
    /// - [`ErrorKind::LimitExceeded`]: a range reaches past its arena's limit.
    /// - [`ErrorKind::NotPrivate`]: other processes map the memory of one of the arenas.
    /// - [`ErrorKind::Conflict`]: one of them has huge pages (hugetlbfs), a template that arenas share, or a
    ///   checkpoint.
    /// - [`ErrorKind::Poisoned`]: part of a range is [poisoned](Self::poison).
    /// - [`ErrorKind::BudgetExhausted`]: the target's budget has no room, or the source's none for untouched
    ///   pages that have to be populated.
    /// - [`ErrorKind::TemplateUnreadable`]: the same pages, if they cannot be read.
    /// - [`ErrorKind::Os`]: with `EINVAL`, part of a range is locked in memory (mlock(2)); with
    ///   `ENOMEM`, there is no memory or no mapping; with [`Operation::OpenMemory`], pages cannot
    ///   be copied without userfaultfd.
    /// - [`ErrorKind::NotInherited`]: a forked child must not touch one of the arenas.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see [`Arena`].
    ///
    /// # Safety
    /// The content of both ranges changes: no reference to memory in them may be alive, nobody may access
    /// them meanwhile, and what they hold afterwards must be valid for whoever reads it.
    ///
    /// ```
    /// let arena = |name| lacuna::Arena::builder(1 << 30).name(name).reserve();
    /// let (scratch, kept) = (arena("scratch")?, arena("kept")?);
    /// // SAFETY: nobody else uses the arenas, and nobody holds a reference into them.
    /// unsafe {
    ///     scratch.as_ptr().write(7);
    ///     scratch.move_pages(0..2 << 20, &kept, 4 << 20)?;
    ///     assert_eq!(kept.as_ptr().add(4 << 20).read(), 7);
    ///     assert_eq!(scratch.as_ptr().read(), 0);
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub unsafe fn move_pages(&self, from: Range<usize>, to: &Arena, at: usize) -> Result<()> {
        const MOVE: Operation = Operation::MovePages;
        self.check_inherited(MOVE)?;
        to.check_inherited(MOVE)?;
        for arena in [self, to] {
            arena.check_plain(MOVE)?;
            let region = arena.region();
            if !region.backing.is_ordinary() || region.source.shared_pages() > 0 {
                return Err(Error::new(MOVE, ErrorKind::Conflict));
            }
        }
        let source = self.pages(MOVE, &from)?;
        let end = at.checked_add(from.len()).unwrap_or(usize::MAX & !(page_size() - 1));
        let target = to.pages(MOVE, &(at..end))?;
        let error = |kind| Err(Error::new(MOVE, kind).range(from.start, from.end));
        let same = ptr::eq(self.seat, to.seat);
        if same && source.start < target.end && target.start < source.end {
            return error(ErrorKind::Overlap);
        }
        if source.end > self.region().limit() || target.end > to.region().limit() {
            return error(ErrorKind::LimitExceeded);
        }
        if to.backend() == Backend::Mprotect {
            mprotect::start_writing()?;
        }
        let whole = self.region().chunk_pages();
        let mut done = 0;
        while done < source.len() {
            let (first, into) = (source.start + done, target.start + done);
            let room = (whole - first % whole).min(whole - into % whole);
            let step = Step { from: first, to: into, len: room.min(source.len() - done) };
            self.take_step(to, &step).map_err(|error| error.range(from.start, from.end))?;
            done += step.len;
        }
        Ok(())
    }

    /// Moves the pages of one step.
    fn take_step(&self, to: &Arena, step: &Step) -> Result<()> {
        let mut is_final = false;
        loop {
            let blocked = SignalsBlocked::new();
            let taken = self.own_both(to, step, move_owned);
            drop(blocked);
            match taken {
                Some(Ok(())) => return Ok(()),
                None | Some(Err(Cause::Pending)) => pause(10_000),
                Some(Err(Cause::Absent)) => self.populate_differing(to, step)?,
                Some(Err(Cause::Exhausted)) if is_final => {
                    return Err(Error::new(Operation::MovePages, ErrorKind::BudgetExhausted));
                }
                // Once nothing is left to recall, what others have recalled is looked for once more.
                Some(Err(Cause::Exhausted)) => {
                    is_final = !to.recall_one();
                }
                Some(Err(Cause::Tracked)) => {
                    return Err(Error::new(Operation::MovePages, ErrorKind::Conflict));
                }
                Some(Err(Cause::Poisoned)) => {
                    return Err(Error::new(Operation::MovePages, ErrorKind::Poisoned));
                }
                Some(Err(Cause::Os(errno))) => return Err(Error::os(Operation::MovePages, errno)),
            }
        }
    }

    /// Takes back a lent chunk, because the budget is needed; false if there is none that can be had. Then
    /// what those that were lent before were charged for has been given back.
    fn recall_one(&self) -> bool {
        let blocked = SignalsBlocked::new();
        let mut from = 0;
        while let Some(index) = lend::next_lent_from(self.region(), from) {
            let recall = |region: &Region, chunk: &Chunk<'_>| match chunk.state.is_lent() {
                true => lend::recall(region, chunk, true).is_ok(),
                // A discard that failed half-way has left the mark.
                false => {
                    lend::unmark(region, index);
                    true
                }
            };
            if self.as_owner(&blocked, index, recall) == Some(true) {
                return true;
            }
            from = index + 1;
        }
        // Pairs with the fence before a chunk's mark is taken away.
        fence(Ordering::Acquire);
        false
    }

    /// Makes those pages of the source present whose absence would read otherwise at the target.
    fn populate_differing(&self, to: &Arena, step: &Step) -> Result<()> {
        let (source, target) = (self.region(), to.region());
        for page in step.from..step.from + step.len {
            let (chunk, inside) = source.chunk_of(page).unzip();
            let is_present = chunk.zip(inside).is_some_and(|(chunk, page)| chunk.is_present(page));
            if !is_present && differs(source, page, target, page - step.from + step.to) {
                self.populate(page << source.page_shift..(page + 1) << source.page_shift)?;
            }
        }
        Ok(())
    }

    /// Runs `work` as the owner of both chunks of a step; `None` if one of them has another owner.
    ///
    /// The one at the lower address is claimed first, and nobody waits for a chunk or a pin while holding
    /// the other: not even for a fork, which may wait for this thread. Fillers are waited for, who wait for
    /// nobody.
    fn own_both<R>(
        &self,
        to: &Arena,
        step: &Step,
        work: impl FnOnce(&Place<'_>, &Place<'_>) -> R,
    ) -> Option<R> {
        let (source, target) = (self.try_pin()?, to.try_pin()?);
        let from = Place::of(&source, step.from, step.len)?;
        let into = Place::of(&target, step.to, step.len)?;
        let (first, second) =
            if from.address(0) < into.address(0) { (&from, &into) } else { (&into, &from) };
        let are_one = ptr::eq(first.chunk.state, second.chunk.state);
        if !first.chunk.state.claim() {
            return None;
        }
        if !are_one && !second.chunk.state.claim() {
            first.chunk.state.release();
            return None;
        }
        first.chunk.await_fillers();
        second.chunk.await_fillers();
        let result = work(&from, &into);
        first.chunk.state.release();
        if !are_one {
            second.chunk.state.release();
        }
        Some(result)
    }

    /// Holds on to the region, unless a fork is about to happen.
    fn try_pin(&self) -> Option<Pinned<'_, Region>> {
        match REGISTRY.pin(self.base.as_ptr().addr(), current_thread) {
            Lookup::Found(region) => Some(region),
            Lookup::Retry | Lookup::Nothing => None,
        }
    }
}

/// Moves the pages of a place to another, as the owner of both chunks.
fn move_owned(from: &Place<'_>, into: &Place<'_>) -> Result<(), Cause> {
    if from.region.track.is_on() || into.region.track.is_on() {
        return Err(Cause::Tracked);
    }
    if from.has_poison() || into.has_poison() {
        return Err(Cause::Poisoned);
    }
    if from.chunk.state.is_lent() {
        lend::recall(from.region, &from.chunk, false)?;
    }
    let present = from.chunk.present();
    let is_missed = |page: &usize| {
        !present.get(from.pages.start + page)
            && differs(from.region, from.page(*page), into.region, into.page(*page))
    };
    if (0..from.pages.len()).any(|page| is_missed(&page)) {
        return Err(Cause::Absent);
    }
    empty_part(into.region, &into.chunk, &(into.page(0)..into.page(into.pages.len())))?;
    let count = from.pages.clone().filter(|page| present.get(*page)).count() as u64;
    if count == 0 {
        return Ok(());
    }
    let same = ptr::eq(from.region, into.region);
    let promised = if same { 0 } else { promise(into.region, count)? };
    into.region.tables.summary().set(into.chunk.index);
    let (tally, result) = relocate::relocate(from, into);
    match same {
        true => tally.enter_within(&from.region.ledger),
        false => {
            into.region.ledger.settle(promised, tally.arrived.resident, tally.arrived.lent);
            from.region.ledger.release(tally.left.resident, tally.left.lent);
        }
    }
    for place in [from, into] {
        forget_if_empty(place.region, &place.chunk);
    }
    // Not tried again: what has arrived would be taken for what the target held.
    Ok(result?)
}

/// A promise of so many pages.
fn promise(region: &Region, pages: u64) -> Result<u64, Cause> {
    match region.ledger.charge(pages, region.budget) {
        Charge::Promised(promised) if promised == pages => Ok(promised),
        Charge::Promised(promised) => {
            region.ledger.settle(promised, 0, 0);
            // Promises of others may be given back.
            let is_final = region.ledger.is_settled();
            Err(if is_final { Cause::Exhausted } else { Cause::Pending })
        }
        Charge::Pending => Err(Cause::Pending),
        Charge::Exhausted => Err(Cause::Exhausted),
    }
}
