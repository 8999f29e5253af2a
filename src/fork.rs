//! What must be done around fork(2), in an order that cannot deadlock: arenas before heaps, since
//! making an arena may allocate, and allocating never makes an arena; and faults last, since whoever
//! holds a heap's lock may be interrupted by a handler that faults, and goes on only once it has.

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::lock::Mutex;
use crate::sys;
use core::ptr;
use nix::errno::Errno;

/// What a layer does around a fork.
pub(crate) struct Hooks {
    /// Before it: brings what is to be copied to rest.
    pub(crate) before: fn(),
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

/// 1 once the C library knows us; the lock is for whoever makes us known.
static KNOWN: AtomicU32 = AtomicU32::new(0);
static INTRODUCING: Mutex<()> = Mutex::new(());

/// The layers whose hooks ran before the fork that is under way, a bit each: one that installs its
/// hooks meanwhile has nothing to undo. It is written and read by the thread that forks, or its copy,
/// between its first hook and its last, and so by one thread at a time.
static UNDER_WAY: AtomicU32 = AtomicU32::new(0);

/// Has a layer's hooks run around each fork from now on. They cannot be removed.
pub(crate) fn install(layer: Layer, hooks: &'static Hooks) -> Result<(), Errno> {
    if KNOWN.load(Ordering::Acquire) == 0 {
        introduce()?;
    }
    // Release pairs with the Acquire in `hooks`: constant data, which needs no more than that.
    HOOKS[layer as usize].store(ptr::from_ref(hooks).cast_mut(), Ordering::Release);
    Ok(())
}

fn introduce() -> Result<(), Errno> {
    let _introducing = INTRODUCING.lock();
    // Relaxed: under the lock.
    if KNOWN.load(Ordering::Relaxed) == 0 {
        sys::at_fork(before, in_parent, in_child)?;
        KNOWN.store(1, Ordering::Release);
    }
    Ok(())
}

fn hooks(layer: usize) -> Option<&'static Hooks> {
    // SAFETY: only references to static hooks are stored.
    HOOKS.get(layer).and_then(|it| unsafe { it.load(Ordering::Acquire).as_ref() })
}

extern "C" fn before() {
    // The last are looked for first: if they are installed, those that they rely on are.
    let mut found = [None; LAYERS];
    found.iter_mut().enumerate().rev().for_each(|(layer, found)| *found = hooks(layer));
    let mut ran = 0;
    for (layer, hooks) in found.into_iter().enumerate() {
        if let Some(hooks) = hooks {
            (hooks.before)();
            ran |= 1 << layer;
        }
    }
    UNDER_WAY.store(ran, Ordering::Relaxed);
}

extern "C" fn in_parent() {
    undo(|hooks| (hooks.in_parent)());
}

extern "C" fn in_child() {
    undo(|hooks| (hooks.in_child)());
}

fn undo(run: fn(&Hooks)) {
    let ran = UNDER_WAY.load(Ordering::Relaxed);
    (0..LAYERS).rev().filter(|layer| ran & (1 << layer) != 0).filter_map(hooks).for_each(run);
}
