//! Events: what read(2) of a userfaultfd delivers.

use super::{Features, Uffd, abi};
use crate::error::{Error, Operation, Result};
use core::{fmt, slice};
use nix::errno::Errno;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

bitflags::bitflags! {
    /// What kind of fault an [`Event::Pagefault`] is.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct PagefaultFlags: u64 {
        /// The access was a write.
        #[doc(alias = "UFFD_PAGEFAULT_FLAG_WRITE")]
        const WRITE = abi::UFFD_PAGEFAULT_FLAG_WRITE as u64;
        /// A write-protected page was written
        /// ([`RegisterMode::WP`](super::RegisterMode::WP)).
        #[doc(alias = "UFFD_PAGEFAULT_FLAG_WP")]
        const WP = abi::UFFD_PAGEFAULT_FLAG_WP as u64;
        /// The page cache has the page ([`RegisterMode::MINOR`](super::RegisterMode::MINOR)).
        #[doc(alias = "UFFD_PAGEFAULT_FLAG_MINOR")]
        const MINOR = abi::UFFD_PAGEFAULT_FLAG_MINOR as u64;

        const _ = !0;
    }
}

/// Something that happened to registered memory.
///
/// A page fault makes its thread wait until the fault is resolved. Every other event makes the
/// system call that caused it wait until the event is read; meanwhile the operations on the
/// userfaultfd fail with `EAGAIN`.
///
/// Addresses are numbers, not pointers: the memory may belong to another process, or be gone.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A thread touched a page that is missing, protected or not mapped yet.
    #[doc(alias = "UFFD_EVENT_PAGEFAULT")]
    Pagefault {
        /// The page's address; the exact byte with [`Features::EXACT_ADDRESS`].
        address: usize,
        /// Neither [`PagefaultFlags::WP`] nor [`PagefaultFlags::MINOR`] means a missing page.
        flags: PagefaultFlags,
        /// The thread, as gettid(2) numbers it; only with [`Features::THREAD_ID`].
        thread: Option<u32>,
    },
    /// The process forked ([`Features::EVENT_FORK`]).
    #[doc(alias = "UFFD_EVENT_FORK")]
    Fork {
        /// The userfaultfd of the child's memory, with the features and registrations of this one.
        uffd: Uffd,
    },
    /// mremap(2) moved memory ([`Features::EVENT_REMAP`]).
    #[doc(alias = "UFFD_EVENT_REMAP")]
    Remap {
        /// Where it was.
        from: usize,
        /// Where it is.
        to: usize,
        /// Its old length in bytes.
        len: usize,
    },
    /// madvise(2) discarded pages; the mapping is still registered ([`Features::EVENT_REMOVE`]).
    #[doc(alias = "UFFD_EVENT_REMOVE")]
    Remove {
        /// The first byte.
        start: usize,
        /// The byte after the last.
        end: usize,
    },
    /// Memory was unmapped ([`Features::EVENT_UNMAP`]).
    #[doc(alias = "UFFD_EVENT_UNMAP")]
    Unmap {
        /// The first byte.
        start: usize,
        /// The byte after the last.
        end: usize,
    },
    /// An event of a newer kernel, by its number.
    Unknown(u8),
}

/// Room for the messages of one read(2), up to `N`.
pub struct EventBuffer<const N: usize>([abi::uffd_msg; N]);

impl<const N: usize> EventBuffer<N> {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        let arg = abi::uffd_msg__bindgen_ty_1 {
            reserved: abi::uffd_msg__bindgen_ty_1__bindgen_ty_5 {
                reserved1: 0,
                reserved2: 0,
                reserved3: 0,
            },
        };
        Self([abi::uffd_msg { event: 0, reserved1: 0, reserved2: 0, reserved3: 0, arg }; N])
    }
}

impl<const N: usize> Default for EventBuffer<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> fmt::Debug for EventBuffer<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBuffer").finish_non_exhaustive()
    }
}

/// The events of one [`Uffd::read_events`], oldest first.
///
/// Dropping it drops the events that were not taken, which closes the descriptors of forked
/// children among them.
#[must_use = "the events are read and will not be queued again"]
pub struct Events<'a> {
    messages: slice::Iter<'a, abi::uffd_msg>,
    features: Features,
}

impl Iterator for Events<'_> {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        // SAFETY: these messages come from one read(2) of a userfaultfd, and the iterator, which
        // is not `Clone` and borrows them exclusively, passes each of them on once.
        self.messages.next().map(|message| unsafe { decode(*message, self.features) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.messages.size_hint()
    }
}

impl ExactSizeIterator for Events<'_> {}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl fmt::Debug for Events<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl<F: AsFd> Uffd<F> {
    /// Reads one event.
    ///
    /// `None` if none is queued and the userfaultfd is
    /// [nonblocking](super::UffdBuilder::nonblocking); otherwise it waits. **In SIGBUS mode nothing
    /// is ever queued**: a nonblocking userfaultfd always returns `None`, another one waits for
    /// ever.
    ///
    /// Several threads may read; each event goes to one of them.
    ///
    /// See userfaultfd(2), "Reading from the userfaultfd structure".
    ///
    /// ```
    /// use lacuna::uffd::Uffd;
    ///
    /// let uffd = Uffd::builder().nonblocking(true).open()?;
    /// assert!(uffd.read_event()?.is_none());
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - `EINTR`: a signal handler ran while waiting.
    /// - `EMFILE`, `ENFILE`: no descriptor is left for the userfaultfd of a forked child; the event
    ///   stays queued.
    #[doc(alias = "uffd_msg")]
    pub fn read_event(&self) -> Result<Option<Event>> {
        Ok(self.read_events(&mut EventBuffer::<1>::new())?.next())
    }

    /// Reads the events that are queued, up to `N`, with one read(2); waits as
    /// [`Uffd::read_event`] does for the first one only.
    ///
    /// # Errors
    ///
    /// As [`Uffd::read_event`], and `EINVAL` if `N` is zero.
    #[doc(alias = "uffd_msg")]
    pub fn read_events<'a, const N: usize>(
        &self,
        buffer: &'a mut EventBuffer<N>,
    ) -> Result<Events<'a>> {
        let messages = &mut buffer.0;
        // SAFETY: the buffer is valid for writes of its size, and any bytes make a message.
        let read =
            unsafe { libc::read(self.raw(), messages.as_mut_ptr().cast(), size_of_val(messages)) };
        let count = match Errno::result(read) {
            Ok(bytes) => bytes as usize / size_of::<abi::uffd_msg>(),
            Err(Errno::EAGAIN) => 0,
            Err(errno) => return Err(Error::os(Operation::ReadEvent, errno)),
        };
        // `get` cannot fail, since read(2) returns no more than it was given; nor may it panic here.
        let messages = messages.get(..count).unwrap_or_default().iter();
        Ok(Events { messages, features: self.features })
    }
}

/// # Safety
///
/// `message` is as a userfaultfd delivered it, and is decoded once: a message about a fork owns a
/// descriptor.
unsafe fn decode(message: abi::uffd_msg, features: Features) -> Event {
    let arg = message.arg;
    // SAFETY: all variants of the union are integers of the 24 bytes that read(2) has written, so
    // any of them may be read.
    let (pagefault, fork, remap, range) =
        unsafe { (arg.pagefault, arg.fork, arg.remap, arg.remove) };
    // SAFETY: as above.
    let thread = unsafe { pagefault.feat.ptid };
    // No address is wider than `usize`, so the conversions lose nothing.
    match u32::from(message.event) {
        abi::UFFD_EVENT_PAGEFAULT => Event::Pagefault {
            address: pagefault.address as usize,
            flags: PagefaultFlags::from_bits_retain(pagefault.flags),
            thread: features.contains(Features::THREAD_ID).then_some(thread),
        },
        abi::UFFD_EVENT_FORK => {
            // SAFETY: read(2) made this descriptor for the reader of this message, decoded once.
            let fd = unsafe { OwnedFd::from_raw_fd(fork.ufd as RawFd) };
            // SAFETY: the kernel gives a child's userfaultfd the state of its parent's.
            Event::Fork { uffd: unsafe { Uffd::from_parts(fd, features) } }
        }
        abi::UFFD_EVENT_REMAP => Event::Remap {
            from: remap.from as usize,
            to: remap.to as usize,
            len: remap.len as usize,
        },
        abi::UFFD_EVENT_REMOVE => {
            Event::Remove { start: range.start as usize, end: range.end as usize }
        }
        abi::UFFD_EVENT_UNMAP => {
            Event::Unmap { start: range.start as usize, end: range.end as usize }
        }
        _ => Event::Unknown(message.event),
    }
}
