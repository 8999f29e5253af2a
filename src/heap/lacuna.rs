//! The global allocator.

use super::core::Core;
use super::environment;
use super::setup::{Site, found};
use super::{HeapStats, class, thread};
use crate::arena::Mapping;
use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::fault::ledger::UNBOUNDED;
use crate::fault::region::Name;
use crate::lock::Mutex;
use crate::page::{CHUNK, page_shift};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};

/// A heap as a global allocator.
///
/// It reserves address space and arms itself at the first allocation, which may be the very first of
/// the process, and needs no userfaultfd. It stays until the process ends.
///
/// ```
/// #[global_allocator]
/// static GLOBAL: lacuna::Lacuna = lacuna::Lacuna::new();
///
/// fn main() {
///     let words: Vec<String> = "a few words".split(' ').map(String::from).collect();
///     assert!(GLOBAL.stats().live_blocks >= 4);
///     drop(words);
/// }
/// ```
///
/// # Locked memory
/// All of its address space is accessible, so mlockall(2) with `MCL_CURRENT` would fill it, which is
/// death by the OOM killer: add `MCL_ONFAULT`, which locks memory as it is touched. `MCL_FUTURE` alone
/// does no harm. The same holds for a [`Heap`](crate::Heap). Memory that is locked is not given back.
///
/// # Environment
/// `LACUNA_BUDGET=512M` (bytes, or K, M, G, T) sets the budget of the first `Lacuna` of the process,
/// whatever the program says; a value that makes no sense ends the process with a message and status
/// 2. `LACUNA_STATS=1` has it print its statistics on stderr at exit. `LACUNA_POISON=1`, or `0`, says whether
/// it [poisons](Self::poison_freed) what is freed.
pub struct Lacuna {
    core: AtomicPtr<Core>,
    arming: Mutex<()>,
    reserve: usize,
    budget: usize,
    poison_freed: bool,
}

/// Address space by default: more than machines have memory, and little enough to be had.
const RESERVE: usize = 1 << 40;

impl Lacuna {
    /// Without a budget, in 1 TiB of address space.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            core: AtomicPtr::new(ptr::null_mut()),
            arming: Mutex::new(()),
            reserve: RESERVE,
            budget: usize::MAX,
            poison_freed: false,
        }
    }

    /// Reserves `bytes` bytes of address space, rounded up to 2 MiB. Where the system does not give so
    /// much (`ulimit -v`), it takes the half, and so on.
    #[must_use]
    pub const fn reserve(mut self, bytes: usize) -> Self {
        self.reserve = bytes;
        self
    }

    /// Allows at most `bytes` bytes of memory, rounded down to whole pages; what counts is told at
    /// [`Heap`](crate::Heap). An allocation that would exceed it answers null.
    #[must_use]
    pub const fn budget(mut self, bytes: usize) -> Self {
        self.budget = bytes;
        self
    }

    /// Whether touching a large block (more than 128 KiB) after it was freed is a violation, whose
    /// line has the heap's name and the block's size; not so by default. The same goes for the old
    /// address of a block that was moved in growing.
    ///
    /// A freed block gives its memory back at once, and its address space is kept out of use: up to 1 GiB in
    /// all and 1,024 blocks in the process, those that were freed last, or until an allocation finds no room.
    /// Of a block of more than 1 GiB the first GiB is poisoned. Where a block is used that has been freed for
    /// so long that others have its address, nothing is noticed.
    ///
    /// It is for finding bugs: freed memory is not reused without going to the system and back, and a page
    /// table stays for each 2 MiB. Its touches raise SIGSEGV, for which lacuna's handler is
    /// installed when the first block is freed; system calls find EFAULT. Forked children inherit
    /// it. It rests on `MADV_GUARD_INSTALL` (madvise(2), since Linux 6.13); before that, each freed
    /// block takes a mapping.
    ///
    /// ```
    /// static HEAP: lacuna::Lacuna = lacuna::Lacuna::new().poison_freed(true);
    ///
    /// use std::alloc::{GlobalAlloc, Layout};
    /// let layout = Layout::new::<[u8; 300_000]>();
    /// // SAFETY: the layout has a size, and the block is freed once, with it.
    /// unsafe { HEAP.dealloc(HEAP.alloc(layout), layout) };
    /// assert!(HEAP.stats().poisoned_bytes >= 300_000);
    /// ```
    #[must_use]
    pub const fn poison_freed(mut self, poison: bool) -> Self {
        self.poison_freed = poison;
        self
    }

    /// Numbers about it.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        self.armed().map_or(HeapStats::NONE, Core::stats)
    }

    /// Gives memory that no block uses back to the system; see [`Heap::purge`](crate::Heap::purge).
    pub fn purge(&self) {
        if let Some(core) = self.armed() {
            core.purge();
        }
    }

    /// Its core; armed if it was not. `None` if there is no address space.
    fn armed(&self) -> Option<&Core> {
        // Acquire pairs with the Release in `arm`. A core never goes.
        // SAFETY: what is stored is a core that stays.
        unsafe { self.core.load(Ordering::Acquire).as_ref() }.or_else(|| self.arm())
    }

    #[cold]
    #[inline(never)]
    fn arm(&self) -> Option<&Core> {
        /// The first of the process is the one that threads look for first.
        static FIRST: AtomicU32 = AtomicU32::new(0);
        let _arming = self.arming.lock();
        // SAFETY: as above; another thread may have armed it meanwhile.
        if let Some(core) = unsafe { self.core.load(Ordering::Acquire).as_ref() } {
            return Some(core);
        }
        // Relaxed: a number, which is put back if nothing comes of it.
        let is_first = FIRST.swap(1, Ordering::Relaxed) == 0;
        let environment = is_first.then(environment::read);
        let budget = environment.and_then(|it| it.budget).unwrap_or(self.budget);
        let poisons = environment.and_then(|it| it.poison).unwrap_or(self.poison_freed);
        let Some(core) = establish(self.reserve, budget, poisons, is_first) else {
            FIRST.fetch_and(u32::from(!is_first), Ordering::Relaxed);
            return None;
        };
        self.core.store(core.as_ptr(), Ordering::Release);
        if environment.is_some_and(|it| it.stats) {
            environment::print_at_exit(core);
        }
        // SAFETY: as above.
        Some(unsafe { core.as_ref() })
    }

    /// The common path: the class of the layout and this thread's cache, if the layout has one and
    /// the thread's home is this heap.
    #[inline(always)]
    fn at_home(&self, layout: Layout) -> Option<(usize, &super::cache::Cache)> {
        // Relaxed: a cache with this core can only be had from it.
        let core = self.core.load(Ordering::Relaxed).cast_const();
        // SAFETY: a thread's home is there until the thread ends.
        let home = unsafe { thread::home().as_ref() }.filter(|home| ptr::eq(home.core, core))?;
        Some((class::for_layout(layout.size(), layout.align())?, home))
    }

    #[cold]
    #[inline(never)]
    fn allocate_elsewhere(&self, layout: Layout) -> *mut u8 {
        self.armed().map_or(ptr::null_mut(), |core| core.allocate(layout))
    }

    #[cold]
    #[inline(never)]
    unsafe fn free_elsewhere(&self, block: *mut u8, layout: Layout) {
        if let Some(core) = self.armed() {
            // SAFETY: as the caller promises.
            unsafe { core.free(block, layout) };
        }
    }
}

impl Default for Lacuna {
    fn default() -> Self {
        Self::new()
    }
}

/// Reserves address space, and makes a core in it that stays.
fn establish(
    reserve: usize,
    budget: usize,
    poisons: bool,
    is_first: bool,
) -> Option<NonNull<Core>> {
    let budget = match budget {
        usize::MAX => UNBOUNDED,
        bytes => (bytes >> page_shift()) as u64,
    };
    let name = Name::new("global")?;
    let mut len = reserve.clamp(CHUNK, isize::MAX as usize / 4).next_multiple_of(CHUNK);
    loop {
        let reservation = Mapping::zeroed(len + CHUNK);
        let made = reservation.and_then(|reservation| {
            let start = reservation.base().as_ptr();
            let base = start.wrapping_add(start.align_offset(CHUNK)).expose_provenance();
            let site =
                Site { base, len, budget, page_shift: page_shift(), ledger: None, name, poisons };
            // SAFETY: the mapping is new, and nobody's; it and the tables stay for ever.
            let (core, tables) = unsafe { found(&site, is_first)? };
            core::mem::forget((reservation, tables));
            Ok(core)
        });
        match made {
            Ok(core) => return Some(core),
            Err(_) if len > CHUNK => len = (len / 2).next_multiple_of(CHUNK),
            Err(_) => return None,
        }
    }
}

// SAFETY: as for `Heap`.
unsafe impl GlobalAlloc for Lacuna {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.at_home(layout) {
            Some((class, home)) => home.allocate(class),
            None => self.allocate_elsewhere(layout),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.armed().map_or(ptr::null_mut(), |core| core.allocate_zeroed(layout))
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises: the block is one of this heap's, and has a class if its
        // layout has.
        unsafe {
            match self.at_home(layout) {
                #[cfg(debug_assertions)]
                Some((_, home)) => (*home.core).free(block, layout),
                #[cfg(not(debug_assertions))]
                Some((_, home)) => home.free(home.table.span_of(block.addr()), block),
                None => self.free_elsewhere(block, layout),
            }
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as the caller promises.
        self.armed().map_or(ptr::null_mut(), |core| unsafe { core.reallocate(block, layout, size) })
    }
}
