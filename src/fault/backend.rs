//! The two ways to be told of a first touch, and to answer it.

use super::signals::Signal;
use core::fmt;

/// How an arena learns that a page is touched for the first time.
///
/// Both keep the same contract. [`Arena::backend`](crate::Arena::backend) tells which one an arena has,
/// [`ArenaBuilder::backend`](crate::ArenaBuilder::backend) and the environment variable
/// `LACUNA_BACKEND` (`userfaultfd` or `mprotect`) choose one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Backend {
    /// Missing pages are registered with userfaultfd(2) and raise SIGBUS. Any number of pages may be
    /// present, anywhere, without cost to the process's mappings, and streams are filled with huge
    /// pages.
    Userfaultfd,
    /// Missing pages are inaccessible, by mprotect(2), and raise SIGSEGV: for where userfaultfd is
    /// denied or absent, as in most containers.
    ///
    /// Each run of present pages is a mapping of its own, of which a process has 65,530 by default
    /// (`vm.max_map_count`). Templates other than zero are written through `/proc/self/mem`.
    Mprotect,
}

impl Backend {
    /// The signal that a first touch raises.
    pub(crate) fn signal(self) -> Signal {
        match self {
            Self::Userfaultfd => Signal::Bus,
            Self::Mprotect => Signal::Segv,
        }
    }

    /// The value of `LACUNA_BACKEND` that stands for it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Userfaultfd => "userfaultfd",
            Self::Mprotect => "mprotect",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
