//! What a pool tells about itself.

use crate::arena::Bytes;
use core::fmt;

/// The state of a pool in numbers, from [`Pool::stats`](super::Pool::stats). They show one moment only
/// while nobody acquires, releases or touches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// The most instances that there may be.
    pub instances: usize,
    /// Instances that there are. The first is made with the pool, and others when none is idle: so this
    /// is also the most that have been in use at a time, or one.
    pub made: usize,
    /// Instances that are acquired.
    pub in_use: usize,
    /// Instances that can be acquired without making one.
    pub idle: usize,
    /// Instances that could not be brought back to the image; tried again before the pool is exhausted.
    pub spoilt: usize,
    /// Bytes of memory that all of them have of their own, in use or idle; see
    /// [`Stats::resident_bytes`](crate::Stats::resident_bytes). Frames that they have in common count
    /// nowhere here.
    pub resident_bytes: usize,
    /// Bytes of them that the kernel may turn into memory by itself: pages that show a frame in common.
    pub lent_bytes: usize,
    /// How often an instance was acquired.
    pub acquired: u64,
}

impl fmt::Display for PoolStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in use, {} idle of {} instances", self.in_use, self.idle, self.instances)?;
        if self.spoilt > 0 {
            write!(f, ", {} spoilt", self.spoilt)?;
        }
        write!(f, ", {} resident", Bytes(self.resident_bytes))?;
        if self.lent_bytes > 0 {
            write!(f, ", {} lent", Bytes(self.lent_bytes))?;
        }
        write!(f, ", acquired {} times", self.acquired)
    }
}
