//! Which cache a thread has in which heap.
//!
//! The thread-locals here are constant when a thread starts and have no destructor, so touching them
//! allocates nothing, whatever the thread is about to do. That a thread ends is learned from a key of
//! pthread_key_create(3), whose destructors run after Rust's thread-locals are gone.

use super::cache::Cache;
use super::core::Core;
use crate::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::lock::Mutex;
use crate::sys;
use core::cell::Cell;
use core::ffi::c_void;
use core::ptr;

/// Heaps that a process may have at the same time.
const HEAPS: usize = 64;

/// A thread's cache in one heap.
struct Seat {
    /// The heap's; 0 for none.
    id: Cell<u64>,
    cache: Cell<*const Cache>,
}

thread_local! {
    static SEATS: [Seat; HEAPS] = const {
        [const { Seat { id: Cell::new(0), cache: Cell::new(ptr::null()) } }; HEAPS]
    };
    /// The thread's cache in the heap that asked for one first, which is the global allocator's where
    /// there is one.
    static HOME: Cell<*const Cache> = const { Cell::new(ptr::null()) };
    /// Whether the thread's caches were taken back: it is about to end.
    static ENDED: Cell<bool> = const { Cell::new(false) };
}

/// The heaps that are there, each at its seat. Locked while a heap comes or goes, and while a thread
/// gives its caches back: a heap that is found here does not go meanwhile.
static HEAPS_THERE: Mutex<()> = Mutex::new(());
static CORES: [AtomicPtr<Core>; HEAPS] = [const { AtomicPtr::new(ptr::null_mut()) }; HEAPS];

/// The next heap's id.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The key whose destructor tells that a thread ends, plus one; 0 before there is one.
static KEY: AtomicU32 = AtomicU32::new(0);

/// An id for a heap.
pub(crate) fn new_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Makes a heap one that threads may have caches in, and tells its seat. `None` if there are too many,
/// or the process has no key left.
pub(crate) fn enter(core: *const Core) -> Option<usize> {
    let _there = HEAPS_THERE.lock();
    let free = CORES.iter().position(|it| it.load(Ordering::Relaxed).is_null())?;
    make_key().then(|| CORES[free].store(core.cast_mut(), Ordering::Relaxed)).map(|()| free)
}

/// Makes a heap one that threads no longer have caches in; its memory may go afterwards.
pub(crate) fn leave(seat: usize) {
    let _there = HEAPS_THERE.lock();
    if let Some(core) = CORES.get(seat) {
        core.store(ptr::null_mut(), Ordering::Relaxed);
    }
}

/// This thread's cache in the heap with this seat and id, if it has one.
#[inline]
pub(crate) fn cache(seat: usize, id: u64) -> *const Cache {
    SEATS.with(|seats| match seats.get(seat) {
        Some(it) if it.id.get() == id => it.cache.get(),
        _ => ptr::null(),
    })
}

/// This thread's cache in the first heap of the process; null if it has none.
#[inline]
pub(crate) fn home() -> *const Cache {
    HOME.get()
}

/// Gives this thread a cache in a heap, if it may have one.
#[cold]
pub(crate) fn sit_down(core: &Core) -> *const Cache {
    // SAFETY: the key was made before the first heap got a seat. Its value only has to be something.
    let watched = !ENDED.get()
        && unsafe { libc::pthread_setspecific(key(), ptr::from_ref(&KEY).cast()) } == 0;
    if !watched {
        return ptr::null();
    }
    let cache = core.take_cache();
    if !cache.is_null() {
        SEATS.with(|seats| {
            seats[core.seat].id.set(core.id);
            seats[core.seat].cache.set(cache);
        });
        if core.is_home {
            HOME.set(cache);
        }
    }
    cache
}

fn key() -> libc::pthread_key_t {
    KEY.load(Ordering::Relaxed).wrapping_sub(1)
}

fn make_key() -> bool {
    if KEY.load(Ordering::Relaxed) == 0 {
        let Ok(key) = sys::thread_key(ended) else { return false };
        KEY.store(key + 1, Ordering::Relaxed);
    }
    true
}

/// Takes a thread's caches back. Whatever it allocates after this, in the destructors of other keys,
/// comes from no cache.
extern "C" fn ended(_: *mut c_void) {
    ENDED.set(true);
    HOME.set(ptr::null());
    SEATS.with(|seats| {
        for (seat, core) in seats.iter().zip(&CORES) {
            let id = seat.id.replace(0);
            let cache = seat.cache.replace(ptr::null());
            let _there = HEAPS_THERE.lock();
            // SAFETY: the heap does not go while the lock is held.
            if let Some(core) = unsafe { core.load(Ordering::Relaxed).as_ref() }
                && core.id == id
            {
                core.give_cache(cache);
            }
        }
    });
}

/// Locks every heap, and that none comes or goes.
pub(crate) fn lock_heaps() {
    core::mem::forget(HEAPS_THERE.lock());
    for core in &CORES {
        // SAFETY: the heap does not go while the lock is held.
        if let Some(core) = unsafe { core.load(Ordering::Relaxed).as_ref() } {
            core.lock_all();
        }
    }
}

/// Undoes [`lock_heaps`] in the child, and what threads of the parent's had begun there that hold no
/// lock meanwhile: what they were promised.
pub(crate) fn unlock_heaps_in_child() {
    for core in &CORES {
        // SAFETY: the heap does not go while the lock is held.
        if let Some(core) = unsafe { core.load(Ordering::Relaxed).as_ref() } {
            core.pages.ledger().forget_promises();
        }
    }
    unlock_heaps();
}

/// Undoes [`lock_heaps`], on the same thread, or in the child that it forked.
pub(crate) fn unlock_heaps() {
    for core in &CORES {
        // SAFETY: as above.
        if let Some(core) = unsafe { core.load(Ordering::Relaxed).as_ref() } {
            // SAFETY: `lock_heaps` locked them.
            unsafe { core.unlock_all() };
        }
    }
    // SAFETY: as above.
    unsafe { HEAPS_THERE.force_unlock() };
}
