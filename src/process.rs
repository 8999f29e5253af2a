//! What is true of this process alone, in a page that the kernel empties in every child that gets a
//! copy of the memory (madvise(2) MADV_WIPEONFORK, since Linux 4.14).
//!
//! A child that fork(3) makes is told so by our hooks. One that a raw clone(2) makes is not, nor is
//! one whose fork had begun before the hooks were known: the kernel has forgotten there that arenas
//! are registered, and the userfaultfd that it has inherited acts on the memory of its *parent*. It
//! finds zeroes here, by one load, and keeps its hands off. (Where the kernel does not have that advice, it
//! is not told apart.) A child that shares the memory (of
//! vfork(2), posix_spawn(3), a thread) shares this page too, and rightly: a userfaultfd belongs to a
//! memory, not to a process id.
//!
//! What nobody can do for such a child is to have its touches noticed: they raise no signal, and
//! pages that its parent had not touched read as zeroes, whatever the template.

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::lock::Mutex;
use crate::page::page_size;
use crate::sys;
use core::ptr;
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags};

/// The content of the page. All zeroes are a process that nothing is known of yet.
#[repr(C)]
pub(crate) struct Process {
    /// 1 while the process has a userfaultfd of its own that all its arenas are registered with.
    armed: AtomicU32,
    /// Held by the thread that makes what arenas share. Here, since the very first fork hooks are
    /// made known under it: a fork that had begun before copies it without a hook that unlocks it.
    pub(crate) starting: Mutex<()>,
    /// Held by the thread that forks, from its first hook to its last.
    pub(crate) forking: Mutex<()>,
    /// The id of that thread.
    pub(crate) forker: AtomicU32,
}

/// The page, once it was needed.
static HERE: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// What is known of this process.
pub(crate) fn here() -> Result<&'static Process, Errno> {
    // Acquire pairs with the Release in `map`: the page will be emptied in children.
    let page = HERE.load(Ordering::Acquire);
    // SAFETY: null, or the page, which stays; zeroes are a valid value.
    unsafe { page.as_ref() }.map_or_else(map, Ok)
}

/// Maps the page. It takes no lock, which a fork could copy: of several threads, the first wins.
#[cold]
fn map() -> Result<&'static Process, Errno> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists; the
    // advice changes no content; the mapping is this caller's until it is stored.
    unsafe {
        let page = sys::map(ptr::null_mut(), page_size(), protection, MapFlags::MAP_PRIVATE, None)?;
        match sys::advise(page, page_size(), libc::MADV_WIPEONFORK) {
            // An old kernel, or gVisor: children that have our hooks empty the page themselves.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => {
                let _ = sys::unmap(page, page_size());
                return Err(errno);
            }
        }
        let new = page.cast::<Process>();
        let free = ptr::null_mut();
        // Release pairs with the Acquire in `here`, and with the one here if another thread was first.
        match HERE.compare_exchange(free, new, Ordering::Release, Ordering::Acquire) {
            Ok(_) => Ok(&*new),
            Err(first) => {
                let _ = sys::unmap(page, page_size());
                Ok(&*first)
            }
        }
    }
}

/// Empties the page in a forked child, where the kernel did not, before anything else is done there.
pub(crate) fn forget() {
    let Ok(here) = here() else { return };
    // Relaxed: no other thread is there. It is the first thing to go, so this happens once.
    if here.forker.swap(0, Ordering::Relaxed) != 0 {
        here.armed.store(0, Ordering::Relaxed);
        // SAFETY: the thread that forked locked it, of which this one is the copy.
        unsafe { here.forking.force_unlock() };
    }
}

/// Whether the userfaultfd that is known is this process's own. Two loads: the SIGBUS handler asks.
#[inline]
pub(crate) fn is_armed() -> bool {
    // SAFETY: as in `here`.
    let page = unsafe { HERE.load(Ordering::Acquire).as_ref() };
    // Relaxed: set before the first region is published, and published with it; and by the only
    // thread of a forked child.
    page.is_some_and(|it| it.armed.load(Ordering::Relaxed) != 0)
}

/// Says whether this process has a userfaultfd of its own.
pub(crate) fn set_armed(armed: bool) {
    if let Ok(here) = here() {
        here.armed.store(u32::from(armed), Ordering::Relaxed);
    }
}
