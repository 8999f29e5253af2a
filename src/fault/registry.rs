//! Address to region: a radix tree that a signal handler walks without waiting for anybody.
//!
//! ```text
//!  address  | root slot | node slot | node slot | leaf slot | offset in chunk |
//!              64 GiB      2 GiB       64 MiB      2 MiB
//! ```
//! A slot is empty, or points to an entry (at any level: a large arena fills whole slots near the
//! root, so publishing 64 TiB is about a thousand stores), or to a node of the next level. Nodes
//! and entries are never freed, entries only reused; so a reader may always follow what it read,
//! and only has to make sure that an entry *still* stands for the address:
//!
//! | reader, [`Registry::pin`] | writer, under a lock |
//! |---|---|
//! | 1. find the entry | 1. empty its slots |
//! | 2. add a pin to it | 2. wait until it has no pins |
//! | 3. find it again: unchanged, so the pin holds | 3. take the value, reuse the entry |
//!
//! Steps 2 are read-modify-writes of the same word, so one comes first: if the reader's, the
//! writer sees the pin and waits; if the writer's, the reader's third step sees the emptied slot.

use super::shape::{LEAF_SHIFT, LEVELS, NODE_BITS, ROOT_BITS};
use crate::atomic::{AtomicPtr, AtomicU32, Ordering, UnsafeCell};
use core::ops::Deref;
use core::ptr;

/// Slots of the root.
pub(crate) const ROOT_SLOTS: usize = 1 << ROOT_BITS;
/// Slots of a node.
pub(crate) const NODE_SLOTS: usize = 1 << NODE_BITS;

/// Marks a slot's pointer as one to a node; entries and nodes are aligned to more than this.
pub(crate) const NODE_TAG: usize = 1;

/// One slot: null, an `Entry<T>`, or a `Node<T>` with [`NODE_TAG`].
pub(crate) type Slot<T> = AtomicPtr<Entry<T>>;

/// An inner node of the tree. All zeroes is an empty one.
pub(crate) struct Node<T>(pub(crate) [Slot<T>; NODE_SLOTS]);

/// A value that the tree can point to. Its memory is never given back.
pub(crate) struct Entry<T> {
    /// Readers that look at the value, or are about to find out that they must not.
    pub(crate) pins: AtomicU32,
    pub(crate) value: UnsafeCell<Option<T>>,
}

// SAFETY: the value is written only by the writer, while the entry is in no slot and has no pins
// that will hold; it is read by those whose pins hold, who share it.
unsafe impl<T: Send + Sync> Sync for Entry<T> {}

/// The tree.
pub(crate) struct Registry<T: 'static> {
    pub(crate) root: [Slot<T>; ROOT_SLOTS],
    /// While not 0, only the thread of this id may pin: that thread is about to fork.
    pub(crate) gate: AtomicU32,
}

/// The answer to [`Registry::pin`].
pub(crate) enum Lookup<'a, T> {
    /// The value that stands for the address, for as long as this is held.
    Found(Pinned<'a, T>),
    /// No value stands for the address.
    Nothing,
    /// The answer was about to change: let the instruction run again.
    Retry,
}

/// A value that cannot go away.
pub(crate) struct Pinned<'a, T> {
    entry: &'a Entry<T>,
    value: &'a T,
}

impl<T> Deref for Pinned<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> Drop for Pinned<'_, T> {
    fn drop(&mut self) {
        self.entry.unpin();
    }
}

impl<T> Entry<T> {
    fn unpin(&self) {
        // Release pairs with `is_drained`: all reads of the value are over.
        self.pins.fetch_sub(1, Ordering::Release);
    }

    /// Whether no pin is held, and none that is added later will hold, given that the entry's
    /// slots were emptied (or the gate closed) before.
    pub(crate) fn is_drained(&self) -> bool {
        // A read-modify-write, so that a pin which does not see it comes before it; AcqRel: it
        // hands the emptied slots to later pins and takes the finished reads of earlier ones.
        self.pins.fetch_add(0, Ordering::AcqRel) == 0
    }

    /// Takes back the pins of threads that are gone: those of the parent, in a forked child, that
    /// were about to find the gate closed.
    pub(crate) fn forget_pins(&self) {
        // Relaxed: no other thread is left.
        self.pins.store(0, Ordering::Relaxed);
    }
}

impl<T> Registry<T> {
    /// Finds the value for `address` and holds on to it. `thread` tells the caller's id; it is
    /// asked only while the gate is closed.
    pub(crate) fn pin(&self, address: usize, thread: impl FnOnce() -> u32) -> Lookup<'_, T> {
        let found = self.find(address);
        // SAFETY: slots hold null or pointers to entries, which are never freed.
        let Some(entry) = (unsafe { found.as_ref() }) else {
            return Lookup::Nothing;
        };
        // Acquire pairs with `is_drained`: if the writer saw no pin, the next load sees its slots.
        entry.pins.fetch_add(1, Ordering::Acquire);
        // That it is closed is seen by the same pairing; Acquire pairs with its opening: what the
        // thread that closed it did meanwhile is visible.
        let gate = self.gate.load(Ordering::Acquire);
        if ptr::eq(self.find(address), found) && (gate == 0 || gate == thread()) {
            // SAFETY: the pin came before the writer looked for pins, so the value stays.
            if let Some(value) = entry.value.with(|value| unsafe { (*value).as_ref() }) {
                return Lookup::Found(Pinned { entry, value });
            }
        }
        entry.unpin();
        Lookup::Retry
    }

    /// The entry whose slots cover `address`, or null.
    fn find(&self, address: usize) -> *mut Entry<T> {
        let leaf = address >> LEAF_SHIFT;
        let mut slots: &[Slot<T>] = &self.root;
        let mut index = leaf >> (LEVELS * NODE_BITS);
        for level in (0..=LEVELS).rev() {
            let Some(slot) = slots.get(index) else { break };
            // Acquire pairs with the Release in `publish`: the entry or node that it points to is whole.
            let pointer = slot.load(Ordering::Acquire);
            let Some(node) = node_of(pointer) else {
                return pointer;
            };
            slots = &node.0;
            let shift = level.saturating_sub(1).saturating_mul(NODE_BITS);
            index = leaf >> shift & (NODE_SLOTS - 1);
        }
        ptr::null_mut()
    }
}

/// The node that a slot's pointer leads to, if it does.
pub(crate) fn node_of<T>(pointer: *mut Entry<T>) -> Option<&'static Node<T>> {
    if pointer.addr() & NODE_TAG == 0 {
        return None;
    }
    // SAFETY: only `tagged` sets the tag, and nodes are never freed.
    Some(unsafe { &*pointer.map_addr(|address| address & !NODE_TAG).cast::<Node<T>>() })
}
