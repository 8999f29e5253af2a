//! A long random workload whose sizes shift, as those of a program do that goes from one phase to the
//! next: what one phase has left free must serve the next, or memory grows.

use std::alloc::{GlobalAlloc, Layout};
use std::time::Instant;

/// Blocks alive in each thread.
const ALIVE: usize = 20_000;
/// Phases; each prefers other sizes.
const PHASES: usize = 12;

/// Millions of operations a second, of `threads` threads with `steps` steps each.
pub fn shifting<A: GlobalAlloc + Sync>(allocator: &A, threads: usize, steps: usize) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || work(allocator, thread as u64 + 1, steps));
        }
    });
    (threads * steps) as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn work<A: GlobalAlloc>(allocator: &A, seed: u64, steps: usize) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut blocks: Vec<Option<(*mut u8, Layout)>> = vec![None; ALIVE];
    for step in 0..steps {
        let phase = step * PHASES / steps;
        let slot = &mut blocks[random.below(ALIVE)];
        if let Some((block, layout)) = slot.take() {
            // SAFETY: the block is of this allocator, and freed once.
            unsafe { allocator.dealloc(block, layout) };
        }
        let layout = Layout::from_size_align(size(phase, &mut random), 8).expect("a small size");
        // SAFETY: the layout has a size; the block is as long as it says.
        unsafe {
            let block = allocator.alloc(layout);
            assert!(!block.is_null());
            block.write_bytes(1, layout.size());
            *slot = Some((block, layout));
        }
    }
    for (block, layout) in blocks.into_iter().flatten() {
        // SAFETY: as above.
        unsafe { allocator.dealloc(block, layout) };
    }
}

/// A size that the phase prefers: around 16 bytes to 2 KiB, with some much larger ones.
fn size(phase: usize, random: &mut Random) -> usize {
    let middle = 16usize << (phase * 5 % 8);
    match random.below(1000) {
        0 => 20_000 + random.below(300_000),
        1..10 => 2_000 + random.below(14_000),
        _ => middle / 2 + 1 + random.below(middle),
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}
