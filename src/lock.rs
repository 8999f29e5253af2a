//! A mutex that is one futex word: const-constructed, never allocating, and safe to hold across
//! fork by the thread that forks. Bookkeeping behind arenas is locked by it, so it must work
//! inside a global allocator, where std's and parking_lot's locks may allocate or park by thread.

use crate::atomic::{AtomicU32, Ordering};
use lock_api::{GuardNoSend, RawMutex};
use nix::errno::Errno;

/// Nobody holds the lock.
const FREE: u32 = 0;
/// Held, and nobody waits.
const HELD: u32 = 1;
/// Held, and somebody may wait in the kernel.
const CONTENDED: u32 = 2;

/// The raw lock; use it as [`Mutex`].
pub(crate) struct RawFutex(AtomicU32);

/// A mutex over [`RawFutex`], with lock_api's guards.
pub(crate) type Mutex<T> = lock_api::Mutex<RawFutex, T>;
/// Its guard.
pub(crate) type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawFutex, T>;

// SAFETY: the word leaves FREE only in `try_lock` and `lock_slow`, by operations that saw FREE, so
// one owner exists at a time; it returns to FREE only in `unlock`, by that owner.
unsafe impl RawMutex for RawFutex {
    #[allow(clippy::declare_interior_mutable_const, reason = "lock_api wants a const initialiser")]
    const INIT: Self = Self(AtomicU32::new(FREE));

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        if !self.try_lock() {
            self.lock_slow();
        }
    }

    fn try_lock(&self) -> bool {
        // Acquire pairs with the Release in `unlock`: what the last owner wrote is visible.
        self.0.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    unsafe fn unlock(&self) {
        // Release pairs with the Acquire of the next owner.
        if self.0.swap(FREE, Ordering::Release) == CONTENDED {
            futex(&self.0, libc::FUTEX_WAKE, 1);
        }
    }
}

impl RawFutex {
    #[cold]
    fn lock_slow(&self) {
        // Whoever waited must leave CONTENDED behind: it cannot know whether others still wait.
        // Acquire as in `try_lock`.
        while self.0.swap(CONTENDED, Ordering::Acquire) != FREE {
            futex(&self.0, libc::FUTEX_WAIT, CONTENDED);
        }
    }
}

/// futex(2) on a word of this process. Its errors (EAGAIN, EINTR) only mean "look again", which
/// the callers do.
fn futex(word: &AtomicU32, operation: libc::c_int, value: u32) {
    let errno = Errno::last_raw();
    // SAFETY: the word is a live, aligned u32; no timeout is passed.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            operation | libc::FUTEX_PRIVATE_FLAG,
            value,
            core::ptr::null::<libc::timespec>(),
        );
    }
    // Whoever frees memory under this lock may be about to read it.
    Errno::set_raw(errno);
}

#[cfg(test)]
mod tests {
    use super::Mutex;

    #[test]
    fn excludes_under_contention() {
        static COUNT: Mutex<u64> = Mutex::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        *COUNT.lock() += 1;
                    }
                });
            }
        });
        assert_eq!(*COUNT.lock(), 80_000);
    }

    #[test]
    fn try_lock_fails_while_held() {
        let mutex = Mutex::new(());
        let guard = mutex.lock();
        assert!(mutex.try_lock().is_none());
        drop(guard);
        assert!(mutex.try_lock().is_some());
    }
}
