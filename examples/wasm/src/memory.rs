//! Linear memories that are instances of a pool.

use lacuna::{Instance, Pool};
use wasmtime::{Config, LinearMemory, MemoryCreator, MemoryType};

/// Bytes of an instance, the most that a guest may grow to.
pub const RESERVED: usize = 64 << 20;

/// The configuration of an engine whose memories come from a pool.
///
/// Most engines let a guest's access past its memory hit pages without access, and make a trap of the
/// signal. Here such pages are past the instance's limit, and touching them is a violation, which is
/// the end of the process. So nothing may be left to signals: the code compares each address with the
/// present size of the memory, and says itself that it traps.
pub fn config() -> Config {
    let mut config = Config::new();
    config.signals_based_traps(false);
    config.memory_guard_size(0);
    // Instances never move: the code need not look where its memory is after each call.
    config.memory_reservation(RESERVED as u64).memory_may_move(false);
    config
}

/// Makes memories that start as the pool's image.
///
/// An engine has one creator for all its modules, and this one has one pool: a host of many programs has an
/// engine for each. The engine's configuration must be [`config`]'s; the creator sees only part of it.
pub struct Creator(pub Pool);

// SAFETY: what it makes is as asked for, or an error; see `Guest`.
unsafe impl MemoryCreator for Creator {
    fn new_memory(
        &self,
        ty: MemoryType,
        minimum: usize,
        _maximum: Option<usize>,
        reserved: Option<usize>,
        guard: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let instance = self.0.acquire().map_err(|error| error.to_string())?;
        // Below the minimum the code need not compare constant addresses with anything.
        if instance.limit() != minimum {
            return Err(format!("the image has {} bytes, not {minimum}", instance.limit()));
        }
        if reserved.is_some_and(|bytes| bytes > instance.len()) || guard > 0 || ty.is_shared() {
            return Err("only memories as `config` has them can be made".into());
        }
        Ok(Box::new(Guest(instance)))
    }
}

/// A memory, which the store drops when nothing can run in it any more: so it is released.
struct Guest(Instance);

// SAFETY: the bytes up to the limit may be read and written, stay where they are, and are nobody else's
// until the instance is dropped. That untouched ones are made present by a signal is nothing that the
// code could notice.
unsafe impl LinearMemory for Guest {
    fn byte_size(&self) -> usize {
        self.0.limit()
    }

    fn byte_capacity(&self) -> usize {
        self.0.len()
    }

    /// One atomic store, no system call. What is there then is the image's rest: zeroes.
    fn grow_to(&mut self, size: usize) -> wasmtime::Result<()> {
        Ok(self.0.set_limit(size)?)
    }

    fn as_ptr(&self) -> *mut u8 {
        self.0.as_ptr()
    }
}
