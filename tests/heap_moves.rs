//! Large blocks that cannot be moved: they are copied, and nothing of the heap is lost.

#![allow(missing_docs, reason = "a test")]

mod support;

use std::alloc::GlobalAlloc;
use support::heap::{alloc, free, heap, layout};

const MIB: usize = 1 << 20;

/// Memory of several mappings, as the kernel has it here and there, is not moved while it grows.
#[test]
fn blocks_in_several_mappings() {
    let heap = heap(128 * MIB, None);
    for round in 0..20 {
        let block = alloc(&heap, layout(6 * MIB));
        // SAFETY: the block is so long, and this thread's; the advice splits its mapping, and is taken back.
        unsafe {
            block.write_bytes(round + 1, 6 * MIB);
            let middle = block.add(2 * MIB).cast();
            assert_eq!(libc::madvise(middle, 2 * MIB, libc::MADV_DONTDUMP), 0);
            let grown = heap.realloc(block, layout(6 * MIB), 8 * MIB);
            assert!(!grown.is_null());
            for at in [0, 3 * MIB, 6 * MIB - 1] {
                assert_eq!(grown.add(at).read(), round + 1);
            }
            free(&heap, grown, layout(8 * MIB));
            assert_eq!(libc::madvise(middle, 2 * MIB, libc::MADV_DODUMP), 0);
        }
    }
    heap.purge();
    let all = alloc(&heap, layout(128 * MIB));
    assert!(!all.is_null(), "{}", heap.stats());
    free(&heap, all, layout(128 * MIB));
}
