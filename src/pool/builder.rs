//! Making pools.

use super::Pool;
use super::inner::Inner;
use crate::arena::{Arena, ArenaBuilder, Template};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::window::Window;
use crate::fork::OnFork;
use std::sync::Arc;

/// What a pool is to be; made by [`Pool::builder`], it makes the pool with [`build`](Self::build).
#[derive(Clone, Debug)]
#[must_use = "nothing is made before `build`"]
pub struct PoolBuilder<'a> {
    pub(super) instances: usize,
    pub(super) arena: ArenaBuilder<'a>,
}

/// Instances, unless the builder is told otherwise.
const INSTANCES: usize = 1000;

/// Bytes that an instance keeps, unless the builder is told otherwise: 256 pages. A run of a small
/// program touches some dozens of pages, and the same ones each time. Restoring a page takes some 100 to
/// 300 nanoseconds, having it back by a fault 3 microseconds; looking at 256 pages takes as long as a
/// dozen faults.
const KEEP_RESIDENT: usize = 1 << 20;

impl<'a> PoolBuilder<'a> {
    pub(super) fn new(template: Template, len: usize) -> Self {
        let arena = Arena::builder(len).template(template).keep_resident(KEEP_RESIDENT);
        Self { instances: INSTANCES, arena }
    }

    /// The most instances that there may be at a time; 1,000 by default. Each takes address space once
    /// it was needed, and the pool 16 bytes for each that it may have.
    pub const fn instances(mut self, most: usize) -> Self {
        self.instances = most;
        self
    }

    /// The prefix of an instance, in bytes rounded up to whole pages, that may be touched when it is
    /// acquired; all of it by default. See [`Instance::set_limit`](super::Instance::set_limit).
    pub fn limit(mut self, bytes: usize) -> Self {
        self.arena = self.arena.limit(bytes);
        self
    }

    /// The most bytes that each instance may have resident and lent together; none by default. See
    /// [`ArenaBuilder::budget`].
    pub fn budget_per_instance(mut self, bytes: usize) -> Self {
        self.arena = self.arena.budget(bytes);
        self
    }

    /// How many bytes of what an instance had touched it keeps when it is released, restored in place
    /// rather than given back; 1 MiB by default. See [`ArenaBuilder::keep_resident`].
    ///
    /// More makes an instance that touches much the same pages each time faster, at the cost of that
    /// much memory while it is idle; 0 gives everything back. Images mapped from a file are always
    /// given back, unless they are [shared](Template::shared).
    pub fn keep_resident(mut self, bytes: usize) -> Self {
        self.arena = self.arena.keep_resident(bytes);
        self
    }

    /// How many pages one fault resolves; see [`ArenaBuilder::window`].
    pub fn window(mut self, window: Window) -> Self {
        self.arena = self.arena.window(window);
        self
    }

    /// A name for diagnostics, of the pool and of each instance, at most 63 bytes; empty by default.
    pub fn name(mut self, name: &'a str) -> Self {
        self.arena = self.arena.name(name);
        self
    }

    /// How instances learn of first touches; see [`ArenaBuilder::backend`].
    pub fn backend(mut self, backend: Backend) -> Self {
        self.arena = self.arena.backend(backend);
        self
    }

    /// What a forked child gets of each instance; see [`ArenaBuilder::on_fork`].
    pub fn on_fork(mut self, what: OnFork) -> Self {
        self.arena = self.arena.on_fork(what);
        self
    }

    /// Makes the pool, and its first instance, so that what is wrong is told now.
    ///
    /// # Errors
    /// - [`ErrorKind::ZeroLength`]: no instance was allowed.
    /// - [`ErrorKind::TooLong`]: more than 2^32 - 2 were.
    /// - Those of [`ArenaBuilder::reserve`].
    pub fn build(self) -> Result<Pool> {
        let error = |kind| Err(Error::new(Operation::Pool, kind).value(self.instances));
        match u32::try_from(self.instances) {
            Ok(0) => error(ErrorKind::ZeroLength),
            Ok(most) if most < u32::MAX => Ok(Pool(Arc::new(Inner::new(&self.arena, most)?))),
            _ => error(ErrorKind::TooLong),
        }
    }
}
