//! An instance that is in use.

use super::inner::Inner;
use crate::arena::{Arena, Stats};
use crate::error::Result;
use core::fmt;
use core::ops::Range;
use std::mem::ManuallyDrop;
use std::sync::Arc;

/// A memory that starts as its [`Pool`](super::Pool)'s image, from [`Pool::acquire`](super::Pool::acquire).
///
/// Dropping it brings it back to the image and releases it, as [`release`](Self::release) does, which
/// tells of errors.
pub struct Instance {
    pool: Arc<Inner>,
    number: u32,
}

impl Instance {
    pub(super) fn acquire(pool: &Arc<Inner>) -> Result<Self> {
        Ok(Self { number: pool.take()?, pool: Arc::clone(pool) })
    }

    /// The first byte, aligned to 2 MiB.
    ///
    /// What is done through the pointer is done to memory that is the image again, and then somebody
    /// else's, as soon as the instance is dropped or released: **no access may go on then, nor come
    /// after it**, and no reference into the instance may be alive, in any thread. Between, its bytes are
    /// as any memory: whoever accesses them answers for data races, and stays before the limit.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.arena().as_ptr()
    }

    /// Bytes of the instance, as far as it may grow.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an instance has at least one page")]
    pub fn len(&self) -> usize {
        self.arena().len()
    }

    /// The prefix that may be touched, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.arena().limit()
    }

    /// Moves the limit: growing is one atomic store. When it is released it has the pool's initial
    /// limit again. See [`Arena::set_limit`].
    ///
    /// # Errors
    /// As for [`Arena::set_limit`].
    pub fn set_limit(&mut self, bytes: usize) -> Result<()> {
        self.arena().set_limit(bytes)
    }

    /// Makes a range present ahead of touching it; see [`Arena::populate`].
    ///
    /// # Errors
    /// As for [`Arena::populate`].
    pub fn populate(&self, range: Range<usize>) -> Result<()> {
        self.arena().populate(range)
    }

    /// Numbers about the instance. Those of faults and the peak count from when it was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.arena().stats()
    }

    /// The arena that it is. What else is done to it ends with the instance: [poison](Arena::poison), a
    /// [checkpoint](Arena::checkpoint), a [recording](Arena::start_recording).
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.pool.arena(self.number).expect("an acquired instance was made")
    }

    /// Brings the instance back to the image and the pool's initial limit, and has it idle.
    ///
    /// # Errors
    /// As for [`Arena::reset`]: part of it is locked in memory (mlock(2)), say. Nobody gets the
    /// instance then before it could be reset; that is tried again when no other is idle.
    pub fn release(self) -> Result<()> {
        let mut this = ManuallyDrop::new(self);
        let result = this.put();
        // SAFETY: the value is not used any more, nor dropped.
        unsafe { core::ptr::drop_in_place(&raw mut this.pool) };
        result
    }

    /// Gives the number back, once.
    fn put(&mut self) -> Result<()> {
        // SAFETY: the number is this value's, which goes; nobody accesses the arena any more, as who
        // uses the pointer has promised.
        unsafe { self.pool.put(self.number) }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // What could not be reset is not used.
        let _ = self.put();
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance")
            .field("number", &self.number)
            .field("arena", self.arena())
            .finish()
    }
}
