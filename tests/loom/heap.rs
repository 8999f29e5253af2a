//! The list that threads push freed blocks to, and that the owner of a span takes.

use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::block::{Block, Remote};
use loom::sync::Arc;
use loom::thread;

/// A block, and what a thread wrote to it before it gave it up.
#[repr(C)]
struct Cell {
    block: Block,
    content: AtomicU32,
}

fn block() -> *mut Block {
    let next = AtomicPtr::new(std::ptr::null_mut());
    Box::into_raw(Box::new(Cell { block: Block { next }, content: AtomicU32::new(0) })).cast()
}

/// Takes the list, and checks each block in it.
fn take(remote: &Remote) -> Vec<*mut Block> {
    let mut blocks = Vec::new();
    let mut block = remote.take();
    while !block.is_null() {
        // SAFETY: the list is the caller's now; blocks are leaked cells.
        unsafe {
            assert_eq!((*block.cast::<Cell>()).content.load(Ordering::Relaxed), 1);
            blocks.push(block);
            block = Block::next(block);
        }
    }
    blocks
}

/// As a thread does that frees a block of another's.
fn give(remote: &Remote, address: usize) {
    let block = std::ptr::with_exposed_provenance_mut::<Block>(address);
    // SAFETY: the block is this thread's until it is pushed.
    unsafe {
        (*block.cast::<Cell>()).content.store(1, Ordering::Relaxed);
        remote.push(block);
    }
}

#[test]
fn freed_blocks_reach_the_owner_once() {
    loom::model(|| {
        let remote = Arc::new(Remote { head: AtomicPtr::new(std::ptr::null_mut()) });
        let addresses = [block().expose_provenance(), block().expose_provenance()];
        let threads = addresses.map(|address| {
            let remote = Arc::clone(&remote);
            thread::spawn(move || give(&remote, address))
        });
        // The owner takes meanwhile, and hands the first block out again, to be freed once more.
        let mut taken = take(&remote);
        let again = taken.pop();
        if let Some(block) = again {
            give(&remote, block.expose_provenance());
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        taken.extend(take(&remote));
        taken.sort();
        let mut all = addresses.map(std::ptr::with_exposed_provenance_mut::<Block>);
        all.sort();
        assert_eq!(taken, all);
        for block in all {
            // SAFETY: made by `block`, and in no list any more.
            drop(unsafe { Box::from_raw(block.cast::<Cell>()) });
        }
    });
}
