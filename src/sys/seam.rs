//! Failure on purpose. In a build with `--cfg lacuna_seam`, each [`Call`] can be made to fail with any
//! error number: the next so many times, or for ever, after a number of calls that succeed. In any
//! other build there is nothing here but [`pass`], which is nothing.
//!
//! ```text
//! RUSTFLAGS="--cfg lacuna_seam" cargo test --test seam
//! ```

use nix::errno::Errno;

macro_rules! calls {
    ($($call:ident),* $(,)?) => {
        /// A system call, or a use of one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[allow(missing_docs, reason = "named after the calls; only tests see them")]
        #[cfg_attr(not(lacuna_seam), allow(dead_code, reason = "named at each call"))]
        pub enum Call { $($call),* }

        #[cfg(lacuna_seam)]
        impl Call {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$call),*];
        }
    };
}

calls! {
    Userfaultfd, OpenDevice, NewFromDevice, Api, Register, Unregister, Wake, Copy, Zeropage, Move,
    WriteProtect, Continue, Poison, Map, Unmap, Protect, Unlock, Discard, PopulateRead, PopulateWrite,
    WipeOnFork, Advise, Remap, Mincore, OpenPagemap, ReadPagemap, ScanPagemap, OpenMemory,
    WriteMemory, Sigaction, AtFork, ThreadKey, MakeMemory, SetLength, Seal, Duplicate, Stat, OpenFile,
    ReadFile, WriteFile, SyncFile, LockFile, OpenFlags, PunchFile, CopyPages, CopyOut, Guard, Unguard,
}

/// Lets a call happen, or says how it fails.
#[cfg(not(lacuna_seam))]
#[inline(always)]
pub(crate) fn pass(_: Call) -> Result<(), Errno> {
    Ok(())
}

#[cfg(lacuna_seam)]
pub(crate) use plans::pass;
#[cfg(lacuna_seam)]
pub use plans::{FOR_EVER, clear, count, fail};

#[cfg(lacuna_seam)]
mod plans {
    use super::{Call, Errno};
    use core::sync::atomic::{AtomicI32, AtomicU32, Ordering};

    /// What is planned for a call. Sequentially consistent throughout: it is for tests.
    struct Plan {
        errno: AtomicI32,
        skip: AtomicU32,
        times: AtomicU32,
        seen: AtomicU32,
    }

    static PLANS: [Plan; Call::ALL.len()] = [const {
        Plan {
            errno: AtomicI32::new(0),
            skip: AtomicU32::new(0),
            times: AtomicU32::new(0),
            seen: AtomicU32::new(0),
        }
    }; Call::ALL.len()];

    /// Times that never end.
    pub const FOR_EVER: u32 = u32::MAX;

    fn plan(call: Call) -> &'static Plan {
        let [first, ..] = &PLANS;
        PLANS.get(call as usize).unwrap_or(first)
    }

    /// Has `call` fail with `errno`, `times` times, after `skip` calls that do not.
    pub fn fail(call: Call, errno: Errno, skip: u32, times: u32) {
        let plan = plan(call);
        plan.times.store(0, Ordering::SeqCst);
        plan.errno.store(errno as i32, Ordering::SeqCst);
        plan.skip.store(skip, Ordering::SeqCst);
        plan.times.store(times, Ordering::SeqCst);
    }

    /// Has nothing fail any more.
    pub fn clear() {
        PLANS.iter().for_each(|plan| plan.times.store(0, Ordering::SeqCst));
    }

    /// How often `call` was made, successful or not.
    pub fn count(call: Call) -> u32 {
        plan(call).seen.load(Ordering::SeqCst)
    }

    pub(crate) fn pass(call: Call) -> Result<(), Errno> {
        let plan = plan(call);
        plan.seen.fetch_add(1, Ordering::SeqCst);
        if plan.times.load(Ordering::SeqCst) == 0 || take(&plan.skip) || !take(&plan.times) {
            return Ok(());
        }
        let errno = Errno::from_raw(plan.errno.load(Ordering::SeqCst));
        errno.set();
        Err(errno)
    }

    /// Takes one of a number, unless none is left; one that never ends stays.
    fn take(number: &AtomicU32) -> bool {
        let less = |now: u32| match now {
            0 => None,
            FOR_EVER => Some(FOR_EVER),
            now => Some(now.wrapping_sub(1)),
        };
        number.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}
