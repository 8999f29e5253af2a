//! The numbers that are a matter of measuring, side by side.
//!
//! None of them may matter to what is correct. So all tests can be run with them shrunk, which makes
//! the rare paths common (every stream earns huge pages within a few pages, whoever is second finds no
//! staging slot, each lonely touch lends until the mappings are used up):
//!
//! ```text
//! RUSTFLAGS="--cfg lacuna_shrunk" cargo test
//! ```

/// `usual`, or `shrunk` in a build for testing.
const fn pick(usual: usize, shrunk: usize) -> usize {
    if cfg!(lacuna_shrunk) { shrunk } else { usual }
}

/// Pages installed with no present page beside them before the next such fault lends the chunk. One:
/// it says that the first was no stream's beginning.
pub(crate) const LONELY_PAGES: u32 = pick(1, 0) as u32;

/// Lending may make one in so many of the mappings that the process may have.
pub(crate) const MAPPINGS_SHARE: usize = pick(4, 8192);

/// A chunk of a shared image is lent only if at most one in so many of its pages is a hole of the file.
pub(crate) const HOLES_SHARE: usize = pick(8, 2);

/// How many times as long as a stream has been its next window is. Once: the window doubles what is
/// there.
pub(crate) const GROWTH: usize = pick(1, 128);

/// How many huge pages may be in the making at once; so much memory may exist for a moment beyond
/// what arenas account for.
pub(crate) const STAGING_SLOTS: usize = pick(8, 1);

/// How many calls of a page function may run at once in an arena, at most 64.
pub(crate) const PAGE_BUFFERS: usize = pick(64, 1);

/// The same where pages are huge ones, and the buffers are.
pub(crate) const HUGE_BUFFERS: usize = pick(8, 1);

/// The shortest run of present pages that counts as a stream under a budget: pages that are there by
/// chance hardly ever lie like that.
pub(crate) const STREAM: usize = pick(8, 2);

/// One in so many pages of a budget's room may be taken by a window.
pub(crate) const ROOM_SHARE: u64 = pick(8, 2) as u64;

/// Chunks that are owned together at most, to discard their pages by one system call: faults in them
/// wait meanwhile.
pub(crate) const DISCARD_BATCH: usize = pick(32, 2);

/// Pages of a trace that are sorted, and so merged into longer runs, at a time: what was touched first is
/// there first, but for the order among so many.
pub(crate) const REPLAY_BATCH: usize = pick(4096, 5);

/// Pages between two runs of a file that are read ahead along with them.
pub(crate) const READ_ALONG: usize = pick(4, 1);
