//! The writing side of the registry's tree: pointing the slots of an address range at an entry, and
//! emptying them again. Writers exclude each other by the registrar's lock; readers never wait.

use crate::atomic::Ordering;
use crate::fault::registry::{Entry, NODE_TAG, Node, Registry, Slot, node_of};
use crate::fault::shape::{LEAF_SHIFT, LEVELS, NODE_BITS, ROOT_BITS};
use core::ops::Range;
use core::ptr;

/// Leaf slots in all.
const LEAVES: usize = 1 << (ROOT_BITS + LEVELS * NODE_BITS);

impl<T> Registry<T> {
    /// Makes `entry` stand for `addresses` (whole leaves), which no entry stands for. `node` gives
    /// fresh empty nodes; false, and nothing published, if it has none left.
    ///
    /// Writers exclude each other.
    pub(crate) fn publish(
        &self,
        addresses: Range<usize>,
        entry: &'static Entry<T>,
        node: &mut dyn FnMut() -> Option<&'static Node<T>>,
    ) -> bool {
        let leaves = addresses.start >> LEAF_SHIFT..addresses.end >> LEAF_SHIFT;
        let done = leaves.end <= LEAVES
            && fill(&self.root, LEVELS, leaves.clone(), ptr::from_ref(entry).cast_mut(), node);
        if !done {
            self.unpublish(addresses);
        }
        done
    }

    /// Empties the slots of `addresses`. Writers exclude each other.
    pub(crate) fn unpublish(&self, addresses: Range<usize>) {
        let leaves =
            addresses.start >> LEAF_SHIFT..addresses.end.min(LEAVES << LEAF_SHIFT) >> LEAF_SHIFT;
        // Without nodes to give it never makes one: an empty slot is left empty.
        fill(&self.root, LEVELS, leaves, ptr::null_mut(), &mut || None);
    }
}

/// Points the slots of `leaves` at `entry`, descending where a slot is covered in part or already
/// divided. `level` nodes lie below `slots`; leaf numbers count from the first slot.
fn fill<T>(
    slots: &[Slot<T>],
    level: u32,
    leaves: Range<usize>,
    entry: *mut Entry<T>,
    node: &mut dyn FnMut() -> Option<&'static Node<T>>,
) -> bool {
    let shift = level * NODE_BITS;
    let mut at = leaves.start;
    while at < leaves.end {
        let index = at >> shift;
        let (first, next) = (index << shift, (index + 1) << shift);
        let end = next.min(leaves.end);
        let Some(slot) = slots.get(index) else { return false };
        // Relaxed: only writers store, and they exclude each other.
        let held = slot.load(Ordering::Relaxed);
        let whole = at == first && end == next;
        let done = match node_of(held) {
            Some(below) => fill(&below.0, level - 1, at - first..end - first, entry, node),
            None if whole => {
                // Release pairs with the Acquire in `find`: what is found is whole.
                slot.store(entry, Ordering::Release);
                true
            }
            // Emptying what is empty in part.
            None if entry.is_null() => true,
            None => node().is_some_and(|below| {
                let done = fill(&below.0, level - 1, at - first..end - first, entry, node);
                slot.store(tagged(below), Ordering::Release);
                done
            }),
        };
        if !done {
            return false;
        }
        at = end;
    }
    true
}

fn tagged<T>(node: &'static Node<T>) -> *mut Entry<T> {
    ptr::from_ref(node).cast_mut().cast::<Entry<T>>().map_addr(|address| address | NODE_TAG)
}
