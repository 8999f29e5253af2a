//! What pages are installed for: whoever asks for them says so, since neither their number nor their
//! content tells.

use super::decode::Access;

/// What is wanted of pages that are to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// To be read: what takes no memory will do.
    Show,
    /// To be memory.
    Memory,
    /// The same, of one page that a thread writes as soon as it is there: it counts as written.
    Write,
}

impl Want {
    /// For a fault that gets `pages` pages. Among others its own is not told apart.
    #[inline(always)]
    pub(crate) fn of_fault(access: Access, pages: usize) -> Self {
        match access {
            Access::Read => Self::Show,
            Access::Write if pages == 1 => Self::Write,
            Access::Write => Self::Memory,
        }
    }

    /// For a touch of this kind that may come, or not.
    pub(crate) fn ahead_of(access: Access) -> Self {
        match access {
            Access::Read => Self::Show,
            Access::Write => Self::Memory,
        }
    }
}
