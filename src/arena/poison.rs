//! Poison: touching a range becomes a violation that names it.
//!
//! A bit for each page in the tables, and nothing of the kernel's: a missing page of an arena raises its
//! signal in any case, and the handler looks at the bits. The markers of UFFDIO_POISON would add that a
//! child forked by a raw clone(2) has a signal too. They cost time for each page and a page table for
//! each 2 MiB, where the bits cost 64 bytes; MADV_DONTNEED and UFFDIO_COPY drop them, so that they
//! could not be what is relied on; and the kernel shows them as swapped pages where it is asked
//! what is memory.

use super::discard::empty_part;
use super::{Arena, inherit};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::signals::SignalsBlocked;
use core::ops::Range;

impl Arena {
    /// Poisons `range` (bytes, whole pages): gives its memory back, and from then on touching it is a
    /// violation ([`Bound::Poisoned`](crate::Bound::Poisoned)) whose line tells where the poisoned bytes
    /// begin and end, until [`unpoison`](Self::unpoison).
    ///
    /// No mapping is split, whatever the number of ranges; system calls find EFAULT. Nothing makes a
    /// poisoned page present: no window, no huge page and no lending reaches it, and
    /// [`populate`](Self::populate) fails with [`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned).
    /// [`discard`](Self::discard) and [`reset`](Self::reset) leave the poison where it is. Poisoning what is
    /// poisoned changes nothing. Past the limit, a touch is a violation of the limit.
    ///
    /// It costs in proportion to the range: well under a microsecond and 64 bytes for each 2 MiB, and what
    /// discarding takes for the pages that are present.
    ///
    /// A forked child inherits the poison with the content ([`OnFork::Inherit`](crate::OnFork)); an arena
    /// that starts anew there ([`OnFork::Wipe`](crate::OnFork)) has none. A child that was forked without
    /// the C library's hooks reads zeroes, as everywhere: see [`Arena`].
    ///
    /// # Errors
    /// - [`ErrorKind::OutOfBounds`](crate::ErrorKind::OutOfBounds),
    ///   [`ErrorKind::Unaligned`](crate::ErrorKind::Unaligned): no such range.
    /// - [`ErrorKind::NotPrivate`](crate::ErrorKind::NotPrivate): other processes map the memory.
    /// - [`ErrorKind::Conflict`](crate::ErrorKind::Conflict): there is a checkpoint, which would bring
    ///   back what is poisoned.
    /// - [`ErrorKind::Os`](crate::ErrorKind::Os): pages could not be given back, for the reasons that
    ///   [`discard`](Self::discard) has. What lies before them is poisoned.
    /// - [`ErrorKind::ForkedWithoutHooks`](crate::ErrorKind::ForkedWithoutHooks),
    ///   [`ErrorKind::NotRearmed`](crate::ErrorKind::NotRearmed): see [`Arena`].
    ///
    /// # Safety
    /// As for [`discard`](Self::discard): no reference to memory in the range may be alive, and what is
    /// read from it once the poison is lifted must be valid as the template has it.
    ///
    /// ```
    /// // A page after a buffer's end that nobody runs over unnoticed.
    /// let arena = lacuna::Arena::builder(1 << 30).name("buffer").reserve()?;
    /// let (len, page) = (64 << 10, lacuna::page_size());
    /// // SAFETY: nobody uses the arena yet.
    /// unsafe { arena.poison(len..len + page)? };
    /// // SAFETY: the buffer's last byte.
    /// unsafe { arena.as_ptr().add(len - 1).write(1) };
    /// assert_eq!(arena.stats().poisoned_bytes, page);
    /// let over = arena.populate(0..len + page).unwrap_err();
    /// assert_eq!(over.kind(), lacuna::ErrorKind::Poisoned);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub unsafe fn poison(&self, range: Range<usize>) -> Result<()> {
        inherit::check(Operation::PoisonRange)?;
        let pages = self.pages(Operation::PoisonRange, &range)?;
        self.check_plain(Operation::PoisonRange)?;
        let blocked = SignalsBlocked::new();
        for index in self.chunks_of(&pages) {
            let poison = self.as_owner(&blocked, index, |region, chunk| {
                // Looked at again, now that it cannot begin meanwhile: nobody is inside a chunk then.
                let is_plain = !region.track.is_on();
                if is_plain {
                    empty_part(region, chunk, &pages)?;
                    chunk.poison(region.part_of(index, &pages));
                }
                Ok(is_plain)
            });
            let error = |errno| Error::os(Operation::PoisonRange, errno);
            match poison.unwrap_or(Ok(true)).map_err(error) {
                Ok(true) => {}
                Ok(false) => return Err(Error::new(Operation::PoisonRange, ErrorKind::Conflict)),
                Err(error) => return Err(error.range(range.start, range.end)),
            }
        }
        Ok(())
    }

    /// Lifts the poison of `range` (bytes, whole pages): touching it shows the template. What is not
    /// poisoned stays as it is.
    ///
    /// # Errors
    /// - [`ErrorKind::OutOfBounds`](crate::ErrorKind::OutOfBounds),
    ///   [`ErrorKind::Unaligned`](crate::ErrorKind::Unaligned): no such range.
    /// - [`ErrorKind::ForkedWithoutHooks`](crate::ErrorKind::ForkedWithoutHooks),
    ///   [`ErrorKind::NotRearmed`](crate::ErrorKind::NotRearmed): see [`Arena`].
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
    /// let page = lacuna::page_size();
    /// // SAFETY: nobody uses the arena yet; the first byte is the arena's.
    /// unsafe {
    ///     arena.poison(0..page)?;
    ///     arena.unpoison(0..page)?;
    ///     assert_eq!(arena.as_ptr().read(), 0);
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn unpoison(&self, range: Range<usize>) -> Result<()> {
        inherit::check(Operation::PoisonRange)?;
        let pages = self.pages(Operation::PoisonRange, &range)?;
        let blocked = SignalsBlocked::new();
        for index in self.chunks_of(&pages) {
            // Looked at without owning it: most chunks of a range have no poison.
            if self.region().tables.chunk(index).is_some_and(|it| it.state.is_poisoned()) {
                self.as_owner(&blocked, index, |region, chunk| {
                    chunk.unpoison(region.part_of(index, &pages));
                });
            }
        }
        Ok(())
    }

    /// Fails where pages that are poisoned, or moved, may come back by ways that do not look at the bits:
    /// by another process, or from a checkpoint.
    pub(super) fn check_plain(&self, operation: Operation) -> Result<()> {
        let region = self.region();
        match () {
            () if region.backing.is_shared() => Err(Error::new(operation, ErrorKind::NotPrivate)),
            () if region.track.is_on() => Err(Error::new(operation, ErrorKind::Conflict)),
            () => Ok(()),
        }
    }

    /// The chunks that hold `pages`.
    fn chunks_of(&self, pages: &Range<usize>) -> Range<usize> {
        let whole = self.region().chunk_pages();
        match pages.is_empty() {
            true => 0..0,
            false => pages.start / whole..pages.end.div_ceil(whole),
        }
    }
}
