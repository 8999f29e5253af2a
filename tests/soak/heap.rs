//! Blocks of a heap that threads allocate, check and free, some of them each other's.

use crate::support::heap::{alloc, free, layout};
use crate::support::{Rng, page};
use crate::tally::{TALLY, count};
use lacuna::{Arena, Heap};
use std::sync::Mutex;

/// A heap, and blocks that whoever comes by checks and frees.
pub(crate) struct Shared {
    pub(crate) heap: Heap,
    given: Mutex<Vec<Block>>,
}

/// A block whose words count from its own address on.
struct Block {
    start: *mut u64,
    size: usize,
    salt: u64,
}

// SAFETY: a block belongs to whoever holds it.
unsafe impl Send for Block {}

/// The blocks of one thread.
#[derive(Default)]
pub(crate) struct Blocks {
    held: Vec<Block>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let arena = Arena::builder(4 << 30).name("heap of the soak").budget(64 << 20);
        Self { heap: Heap::new(arena.reserve().unwrap()).unwrap(), given: Mutex::new(Vec::new()) }
    }

    /// Frees what nobody took, and checks that nothing is left.
    pub(crate) fn check_empty(&self) {
        let mut given = self.given.lock().unwrap();
        given.drain(..).for_each(|block| block.free(&self.heap));
        let stats = self.heap.stats();
        assert_eq!((stats.live_blocks, stats.live_bytes), (0, 0), "{stats}");
        assert!(stats.budget_left().is_some_and(|left| left <= 64 << 20), "{stats}");
    }
}

impl Block {
    fn new(heap: &Heap, rng: &mut Rng) -> Option<Self> {
        let most = [16, 512, 4096, 200_000][rng.below(4)];
        let size = 8 * (1 + rng.below(most));
        let start = alloc(heap, layout(size)).cast::<u64>();
        let block = Self { start, size, salt: rng.next() };
        if start.is_null() {
            return None;
        }
        for index in 0..block.words() {
            // SAFETY: within the block.
            unsafe { start.add(index * block.step()).write(block.word(index)) };
        }
        count(&TALLY.blocks);
        Some(block)
    }

    /// Of large blocks a word a page is used.
    fn step(&self) -> usize {
        if self.size > 8 * page() { page() / 8 } else { 1 }
    }

    fn words(&self) -> usize {
        (self.size / 8).div_ceil(self.step())
    }

    fn word(&self, index: usize) -> u64 {
        self.salt.wrapping_add(index as u64) ^ self.start.addr() as u64
    }

    fn free(self, heap: &Heap) {
        for index in 0..self.words() {
            // SAFETY: within the block, which is initialised there.
            let found = unsafe { self.start.add(index * self.step()).read() };
            let want = self.word(index);
            assert_eq!(
                found, want,
                "word {index} of a block of {} bytes: {:p}",
                self.size, self.start
            );
        }
        TALLY.words(self.words());
        free(heap, self.start.cast(), layout(self.size));
    }
}

impl Blocks {
    pub(crate) fn work(&mut self, shared: &Shared, rng: &mut Rng) {
        for _ in 0..rng.below(200) {
            self.held.extend(Block::new(&shared.heap, rng));
        }
        rng.shuffle(&mut self.held);
        let keep = self.held.len() / 2;
        let mut going: Vec<Block> = self.held.drain(keep..).collect();
        let give = going.split_off(going.len() - going.len() / 4);
        let taken = std::mem::replace(&mut *shared.given.lock().unwrap(), give);
        going.into_iter().chain(taken).for_each(|block| block.free(&shared.heap));
    }

    pub(crate) fn free_all(&mut self, shared: &Shared) {
        self.held.drain(..).for_each(|block| block.free(&shared.heap));
    }
}
