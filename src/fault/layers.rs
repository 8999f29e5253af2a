//! What lies beneath our handler: dispositions that were found in its place, each kept for good.
//!
//! Somebody may install a handler over ours, having saved ours to call it; when ours is put in front
//! again, theirs lies beneath, and calls ours: it must go on with what lay beneath *then*. So our
//! handler exists once for each layer ([`FRONTS`](super::handler::FRONTS)): its address alone tells
//! what is beneath it, to whoever calls it and whenever. A handler that puts back what it had found
//! says by that, too, that it wants to be gone. No second variable could disagree with the kernel's.

use super::signals::{Signal, bits};
use crate::atomic::{AtomicU32, AtomicUsize, Ordering, UnsafeCell};
use core::mem::MaybeUninit;
use core::{mem, ptr};
use libc::sigaction;

/// Layers that there can be, the default disposition among them.
pub(crate) const LAYERS: usize = 16;

/// One of them.
pub(crate) struct Layer {
    pub(crate) action: sigaction,
    /// The layer that was beneath our handler when this one was found in its place: a smaller number,
    /// so that going down comes to an end.
    pub(crate) below: usize,
    /// signal-hook-registry's handler, which would not be there without us.
    pub(crate) claimed: bool,
}

impl Layer {
    /// Whether it is a function, and not the default or to be ignored.
    pub(crate) fn is_handler(&self) -> bool {
        !matches!(self.action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
    }
}

/// All layers of a signal. The default disposition is number 0.
pub(crate) struct Layers {
    slots: [Slot; LAYERS],
    /// Slots given out.
    used: AtomicUsize,
    /// The one that our handler was put in front of last.
    last: AtomicUsize,
    /// 1 once our handler has been installed.
    installed: AtomicU32,
}

/// A layer, written once and then only read: a handler may be reading it while another thread adds
/// the next.
struct Slot {
    layer: UnsafeCell<MaybeUninit<Layer>>,
    /// 1 once it is written.
    written: AtomicU32,
}

// SAFETY: a layer is written by the one caller that was given its slot, before `written` is set, and
// only read after.
unsafe impl Sync for Slot {}

/// The default disposition.
static DEFAULT: Layer = Layer {
    // SAFETY: zeroes are a valid sigaction, the default.
    action: unsafe { mem::zeroed() },
    below: 0,
    claimed: false,
};

static BUS: Layers = Layers::new();
static SEGV: Layers = Layers::new();

impl Layers {
    const fn new() -> Self {
        Self {
            slots: [const { Slot::new() }; LAYERS],
            used: AtomicUsize::new(1),
            last: AtomicUsize::new(0),
            installed: AtomicU32::new(0),
        }
    }

    pub(crate) fn of(signal: Signal) -> &'static Self {
        match signal {
            Signal::Bus => &BUS,
            Signal::Segv => &SEGV,
        }
    }

    /// Whether our handler was put in front for this signal, ever.
    pub(crate) fn is_installed(&self) -> bool {
        // Relaxed: says that a disposition is worth looking at, no more.
        self.installed.load(Ordering::Relaxed) == 1
    }

    /// Notes that our handler is in front now.
    pub(crate) fn set_installed(&self) {
        self.installed.store(1, Ordering::Relaxed);
    }

    /// The layer beneath our handler when it was put in front last: who has displaced it is above that.
    pub(crate) fn last(&self) -> usize {
        // Relaxed: only a bound for going down, see `chain::at_most`.
        self.last.load(Ordering::Relaxed)
    }

    pub(crate) fn set_last(&self, index: usize) {
        self.last.store(index, Ordering::Relaxed);
    }

    /// The layer of this number.
    pub(crate) fn get(&'static self, index: usize) -> &'static Layer {
        self.slots.get(index).and_then(Slot::read).unwrap_or(&DEFAULT)
    }

    /// The number of a layer that was found above `below`, the same as before if it was there
    /// already. `None` if there is no room, which takes a dozen different handlers.
    pub(crate) fn keep(
        &'static self,
        action: &sigaction,
        below: usize,
        claimed: bool,
    ) -> Option<usize> {
        if action.sa_sigaction == libc::SIG_DFL {
            return Some(0);
        }
        let is_it = |layer: &Layer| same(&layer.action, action) && (layer.claimed || !claimed);
        if let Some(index) = self.slots.iter().position(|slot| slot.read().is_some_and(is_it)) {
            return Some(index);
        }
        // Relaxed: the slot is this caller's from here on.
        let index = self.used.fetch_add(1, Ordering::Relaxed);
        self.slots.get(index)?.write(Layer {
            action: *action,
            below: below.min(index.wrapping_sub(1)),
            claimed,
        });
        Some(index)
    }

    /// The number of a layer, by its address.
    pub(crate) fn position(&'static self, layer: *const Layer) -> Option<usize> {
        let at = |slot: &'static Slot| slot.read().is_some_and(|it| ptr::eq(it, layer));
        self.slots.iter().position(at)
    }
}

impl Slot {
    const fn new() -> Self {
        Self { layer: UnsafeCell::new(MaybeUninit::uninit()), written: AtomicU32::new(0) }
    }

    fn read(&'static self) -> Option<&'static Layer> {
        // Acquire pairs with the Release in `write`: the layer is whole.
        if self.written.load(Ordering::Acquire) == 0 {
            return None;
        }
        // SAFETY: written, and from then on only read.
        Some(self.layer.with(|layer| unsafe { (*layer).assume_init_ref() }))
    }

    fn write(&self, layer: Layer) {
        // SAFETY: nobody else was given this slot, and nobody reads it before the next line.
        self.layer.with_mut(|slot| unsafe { (*slot).write(layer) });
        self.written.store(1, Ordering::Release);
    }
}

/// Whether two actions say the same. What the C library adds by itself is not looked at.
pub(crate) fn same(one: &sigaction, other: &sigaction) -> bool {
    /// The flag by which C libraries say that they have added something.
    const SA_RESTORER: libc::c_int = 0x0400_0000;
    one.sa_sigaction == other.sa_sigaction
        && (one.sa_flags ^ other.sa_flags) & !SA_RESTORER == 0
        && bits(&one.sa_mask) == bits(&other.sa_mask)
}
