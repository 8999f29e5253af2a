//! Sizes: the OS page, asked of the system once, and the 2 MiB chunk.

use crate::atomic::{AtomicU32, Ordering};

/// Bytes of a chunk: 2 MiB, the unit of per-chunk fault state and of huge pages.
pub(crate) const CHUNK: usize = 1 << CHUNK_SHIFT;
pub(crate) const CHUNK_SHIFT: u32 = 21;

/// log2 of the page size; 0 until the system has been asked.
static SHIFT: AtomicU32 = AtomicU32::new(0);

/// The size in bytes of the operating system's base page, the unit in which arenas are resolved,
/// charged and discarded.
///
/// ```
/// assert!(lacuna::page_size().is_power_of_two());
/// ```
#[must_use]
pub fn page_size() -> usize {
    1 << page_shift()
}

/// log2 of [`page_size`].
pub(crate) fn page_shift() -> u32 {
    // Relaxed: the value is the same whoever computes it, and nothing else is published by it.
    match SHIFT.load(Ordering::Relaxed) {
        0 => ask(),
        shift => shift,
    }
}

#[cold]
fn ask() -> u32 {
    // SAFETY: sysconf reads a constant of the process; it has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let shift = usize::try_from(size).map_or(12, usize::trailing_zeros);
    SHIFT.store(shift, Ordering::Relaxed);
    shift
}

/// `bytes` rounded up to a multiple of `unit`, a power of two; `None` on overflow.
pub(crate) const fn round_up(bytes: usize, unit: usize) -> Option<usize> {
    match bytes.checked_add(unit - 1) {
        Some(sum) => Some(sum & !(unit - 1)),
        None => None,
    }
}
