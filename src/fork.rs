//! What must be done around fork(2), in an order that cannot deadlock: arenas before heaps, since
//! making an arena may allocate, and allocating never makes an arena; and faults last, since whoever
//! holds a heap's lock may be interrupted by a handler that faults, and goes on only once it has.

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::process;
use crate::sys;
use core::ptr;
use nix::errno::Errno;

/// What a forked child gets of an arena; see [`ArenaBuilder::on_fork`](crate::ArenaBuilder::on_fork).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnFork {
    /// A copy: what the parent has written, its template elsewhere, its budget and its counters.
    #[default]
    Inherit,
    /// An arena as it was when it was reserved: the template everywhere, nothing present. No page
    /// and no page table is copied, so the fork costs less too.
    Wipe,
    /// An arena that must not be touched: a touch is a violation
    /// ([`Bound::NotInherited`](crate::Bound::NotInherited)), and methods that would have pages
    /// appear fail with [`ErrorKind::NotInherited`](crate::ErrorKind::NotInherited). As with
    /// [`Wipe`](Self::Wipe), nothing is copied.
    Forbid,
}

/// What a layer does around a fork.
pub(crate) struct Hooks {
    /// Before it: brings what is to be copied to rest. If it is false, there is nothing to be done
    /// afterwards.
    pub(crate) before: fn() -> bool,
    /// After it, in the parent.
    pub(crate) in_parent: fn(),
    /// After it, in the child, whose only thread is a copy of the one that forked.
    pub(crate) in_child: fn(),
}

/// Who has hooks, in the order in which they run before a fork; afterwards it is the other way round.
#[derive(Clone, Copy)]
pub(crate) enum Layer {
    Arenas,
    Heaps,
    Faults,
}

const LAYERS: usize = 3;

/// The hooks of each layer.
static HOOKS: [AtomicPtr<Hooks>; LAYERS] = [const { AtomicPtr::new(ptr::null_mut()) }; LAYERS];

/// 1 once the C library knows us.
static KNOWN: AtomicU32 = AtomicU32::new(0);

/// The layers that have something to undo after the fork that is under way, a bit each: one that
/// installs its hooks meanwhile has nothing. Only whoever holds `Process::forking` touches it, and
/// its copy in the child.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// Has a layer's hooks run around each fork from now on. They cannot be removed.
pub(crate) fn install(layer: Layer, hooks: &'static Hooks) -> Result<(), Errno> {
    // Made here, so that the hooks find it.
    process::here()?;
    if KNOWN.load(Ordering::Acquire) == 0 {
        introduce()?;
    }
    // Release pairs with the Acquire in `hooks`: constant data, which needs no more than that.
    HOOKS[layer as usize].store(ptr::from_ref(hooks).cast_mut(), Ordering::Release);
    Ok(())
}

/// Makes us known to the C library. There is no lock, which a fork that does not know us yet could
/// copy while it is held; should two threads, or a thread and the child of such a fork, do it twice,
/// every hook is called twice in a row, and does nothing the second time.
fn introduce() -> Result<(), Errno> {
    sys::at_fork(before, in_parent, in_child)?;
    KNOWN.store(1, Ordering::Release);
    Ok(())
}

fn hooks(layer: usize) -> Option<&'static Hooks> {
    // SAFETY: only references to static hooks are stored.
    HOOKS.get(layer).and_then(|it| unsafe { it.load(Ordering::Acquire).as_ref() })
}

extern "C" fn before() {
    // It is there: `install` made it.
    let Ok(here) = process::here() else { return };
    // Relaxed: only this thread can have stored its own id.
    if here.forker.load(Ordering::Relaxed) == current_thread() {
        return;
    }
    // Forks of several threads take turns. Held until after the fork; in the child it is forgotten
    // by the kernel.
    core::mem::forget(here.forking.lock());
    here.forker.store(current_thread(), Ordering::Relaxed);
    // Hooks may be installed by what runs before we are called again: they are known, evidently.
    KNOWN.store(1, Ordering::Release);
    // The last are looked for first: if they are installed, those that they rely on are.
    let mut found = [None; LAYERS];
    found.iter_mut().enumerate().rev().for_each(|(layer, found)| *found = hooks(layer));
    let mut ran = 0;
    for (layer, hooks) in found.into_iter().enumerate() {
        if hooks.is_some_and(|hooks| (hooks.before)()) {
            ran |= 1 << layer;
        }
    }
    UNDER_WAY.store(ran, Ordering::Relaxed);
}

extern "C" fn in_parent() {
    let Ok(here) = process::here() else { return };
    if here.forker.load(Ordering::Relaxed) != current_thread() {
        return;
    }
    undo(|hooks| (hooks.in_parent)());
    here.forker.store(0, Ordering::Relaxed);
    // SAFETY: `before` locked it, on this thread.
    unsafe { here.forking.force_unlock() };
}

extern "C" fn in_child() {
    // Neither lock nor thread id are to be taken back: their page is empty.
    process::forget();
    undo(|hooks| (hooks.in_child)());
}

fn undo(run: fn(&Hooks)) {
    let ran = UNDER_WAY.swap(0, Ordering::Relaxed);
    (0..LAYERS).rev().filter(|layer| ran & (1 << layer) != 0).filter_map(hooks).for_each(run);
}

/// gettid(2), the number that threads are told apart by.
pub(crate) fn current_thread() -> u32 {
    // SAFETY: gettid has no preconditions and cannot fail.
    unsafe { libc::syscall(libc::SYS_gettid) as u32 }
}
