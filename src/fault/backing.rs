//! What an arena's memory is, and what follows from that.

use crate::sys;
use core::ffi::c_int;
use std::os::fd::RawFd;

/// The memory that pages of an arena are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Private base pages, as any program's memory.
    Private,
    /// Private huge pages out of the system's pool (hugetlbfs).
    PrivateHuge,
    /// A file in memory, of base pages or of huge ones, that other processes may map as well. They
    /// install pages of it too, and discard them.
    Shared {
        /// A descriptor that is open for as long as the region is published.
        file: RawFd,
        huge: bool,
    },
}

impl Backing {
    pub(crate) fn is_shared(self) -> bool {
        matches!(self, Self::Shared { .. })
    }

    /// Whether the pages come from the pool of huge pages, which may be empty.
    pub(crate) fn is_huge(self) -> bool {
        matches!(self, Self::PrivateHuge | Self::Shared { huge: true, .. })
    }

    /// Whether the kernel offers more than UFFDIO_COPY: its zero page, huge pages moved into place,
    /// chunks that it fills by itself without anybody else noticing.
    pub(crate) fn is_ordinary(self) -> bool {
        self == Self::Private
    }

    /// The madvise(2) after which the template is seen again: by everybody, where memory is shared.
    pub(crate) fn discard_advice(self) -> c_int {
        if self.is_shared() { libc::MADV_REMOVE } else { libc::MADV_DONTNEED }
    }

    /// Whether the memory is a file that ends before the byte `offset`: somebody has cut it short.
    #[cold]
    pub(crate) fn ends_before(self, offset: usize) -> bool {
        match self {
            Self::Shared { file, .. } => sys::file_len(file).is_ok_and(|len| len <= offset as u64),
            _ => false,
        }
    }
}
