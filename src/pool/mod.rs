//! Pools: many arenas with one image, taken and given back.

mod builder;
mod inner;
mod instance;
mod shelf;
mod stats;

pub use builder::PoolBuilder;
pub use instance::Instance;
pub use stats::PoolStats;

use crate::arena::Template;
use crate::error::Result;
use core::fmt;
use inner::Inner;
use std::sync::Arc;

/// Instances of one image: memories that start as a [`Template`] says, are acquired, written, and
/// released, which brings them back to the image. What a runtime for WebAssembly, virtual machines or
/// interpreters builds on.
///
/// An [`Instance`] is an arena. With a [shared](Template::shared) template, its pages are the image's,
/// common to all, until they are written. It grows by one atomic store ([`Instance::set_limit`]), and
/// releasing it costs in proportion to what was touched: as much as
/// [`keep_resident`](PoolBuilder::keep_resident) says stays memory and is restored in place, without a
/// fault or a system call when it is written next.
///
/// Instances are made when they are needed, up to a number, and used again last in, first out, by
/// the thread that released them if it can be. Acquiring and releasing take no lock.
///
/// A pool is shared by cloning it, which is cheap; instances keep what they need of it, so it may go
/// before they do.
///
/// # Forked children
/// A child has a pool of its own: the instances are what [`PoolBuilder::on_fork`] says. Those that
/// other threads had acquired are in use for ever there, since nobody is left to release them.
///
/// ```
/// use lacuna::{Pool, Template};
///
/// let image = Template::bytes(b"program and data")?.shared()?;
/// let pool = Pool::builder(image, 4 << 30).instances(1000).limit(1 << 20).build()?;
/// let mut instance = pool.acquire()?;
/// // SAFETY: the byte lies before the limit, and nobody else accesses the instance.
/// unsafe {
///     assert_eq!(instance.as_ptr().read(), b'p');
///     instance.as_ptr().write(b'P');
/// }
/// instance.set_limit(2 << 20)?;
/// instance.release()?;
///
/// // SAFETY: as above.
/// assert_eq!(unsafe { pool.acquire()?.as_ptr().read() }, b'p');
/// assert_eq!(pool.stats().made, 1);
/// # Ok::<(), lacuna::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

impl Pool {
    /// Starts to make a pool of instances of `instance_len` bytes each, rounded up to whole pages, that
    /// start as `template` says.
    pub fn builder<'a>(template: Template, instance_len: usize) -> PoolBuilder<'a> {
        PoolBuilder::new(template, instance_len)
    }

    /// An instance that holds the image, with the pool's initial limit: an idle one, or a new one.
    ///
    /// It does not wait for one to be released.
    ///
    /// # Errors
    /// - [`ErrorKind::PoolExhausted`](crate::ErrorKind::PoolExhausted): all instances are in use.
    /// - Those of [`ArenaBuilder::reserve`](crate::ArenaBuilder::reserve), if one is to be made: it
    ///   can be tried again.
    pub fn acquire(&self) -> Result<Instance> {
        Instance::acquire(&self.0)
    }

    /// Numbers about the pool; it looks at every instance.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.0.stats()
    }

    /// Gives the memory of idle instances back, whatever they were to keep; tells how many bytes.
    ///
    /// Instances that are acquired meanwhile are left alone.
    ///
    /// # Errors
    /// As for [`Arena::discard`](crate::Arena::discard); the instance that could not be emptied is not
    /// used before it could.
    ///
    /// ```
    /// let pool = lacuna::Pool::builder(lacuna::Template::zero(), 1 << 20).build()?;
    /// let instance = pool.acquire()?;
    /// // SAFETY: the byte is the instance's, which nobody else accesses.
    /// unsafe { instance.as_ptr().write(1) };
    /// drop(instance);
    /// assert_eq!(pool.stats().resident_bytes, lacuna::page_size());
    /// assert_eq!(pool.trim()?, lacuna::page_size());
    /// assert_eq!(pool.stats().resident_bytes, 0);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn trim(&self) -> Result<usize> {
        self.0.trim()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("name", &self.0.name()).field("stats", &self.stats()).finish()
    }
}
