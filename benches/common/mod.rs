//! What the benchmarks share.
//!
//! - [`race`]: rivals measured in turns, in one process and one run.
//! - [`rivals`]: the ways of getting sparse memory that are measured.
//! - [`work`]: what is done to the memory, and the checks that it really was.
//! - [`session`]: one benchmark file from its arguments to its reports.

#![allow(dead_code, reason = "each benchmark uses its part")]

pub(crate) mod criterion;
pub(crate) mod markdown;
pub(crate) mod memory;
pub(crate) mod options;
pub(crate) mod race;
pub(crate) mod rivals;
pub(crate) mod session;
pub(crate) mod statistics;
pub(crate) mod svg;
pub(crate) mod text;
pub(crate) mod work;

pub(crate) use race::{Contestant, Sample};
pub(crate) use session::Session;

/// Bytes of a mebibyte.
pub(crate) const MIB: usize = 1 << 20;

/// Bytes of a gibibyte.
pub(crate) const GIB: usize = 1 << 30;

/// Bytes of a page.
pub(crate) fn page() -> usize {
    lacuna::page_size()
}
