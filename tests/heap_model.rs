//! Heaps against a model: blocks do not overlap, are aligned, keep their content, start as zeroes
//! where that was asked for; the counters are exact; other threads free.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Heap, page_size};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::mpsc::channel;
use support::Rng;

/// A block, and what it was filled with.
struct Block {
    start: *mut u8,
    layout: Layout,
    value: u8,
}

// SAFETY: a block is its holder's alone.
unsafe impl Send for Block {}

impl Block {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the block is this value's, and initialised.
        unsafe { std::slice::from_raw_parts(self.start, self.layout.size()) }
    }

    fn fill(&mut self, value: u8) {
        self.value = value;
        // SAFETY: the block is this value's.
        unsafe { self.start.write_bytes(value, self.layout.size()) };
    }

    /// Checks some of it: all would take long for large blocks.
    fn check(&self) {
        let bytes = self.bytes();
        let step = (bytes.len() / 64).max(1);
        assert!(bytes.iter().step_by(step).all(|&byte| byte == self.value));
        assert_eq!(bytes[bytes.len() - 1], self.value);
    }
}

fn heap(budget: Option<usize>) -> Heap {
    let mut builder = Arena::builder(1 << 36).name("tested");
    if let Some(bytes) = budget {
        builder = builder.budget(bytes);
    }
    Heap::new(builder.reserve().unwrap()).unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Action {
    Allocate { size: usize, align: usize, zeroed: bool },
    Free { which: usize },
    Resize { which: usize, size: usize },
    Purge,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        8 => 1usize..200,
        4 => 1usize..9_000,
        2 => 8_000usize..140_000,
        1 => 120_000usize..1_200_000,
        1 => 900_000usize..9_000_000,
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let align = prop_oneof![4 => Just(3u32), 2 => 0u32..13, 1 => 12u32..24];
    prop_oneof![
        6 => (size(), align, any::<bool>()).prop_map(|(size, align, zeroed)| {
            Action::Allocate { size, align: 1 << align, zeroed }
        }),
        4 => any::<usize>().prop_map(|which| Action::Free { which }),
        3 => (any::<usize>(), size()).prop_map(|(which, size)| Action::Resize { which, size }),
        1 => Just(Action::Purge),
    ]
}

struct Model<'a> {
    heap: &'a Heap,
    blocks: Vec<Block>,
    count: u8,
}

impl Model<'_> {
    fn run(&mut self, action: Action) {
        match action {
            Action::Allocate { size, align, zeroed } => self.allocate(size, align, zeroed),
            Action::Free { which } if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(which % self.blocks.len());
                self.free(&block);
            }
            Action::Resize { which, size } if !self.blocks.is_empty() => {
                let index = which % self.blocks.len();
                self.resize(index, size);
            }
            Action::Purge => self.heap.purge(),
            Action::Free { .. } | Action::Resize { .. } => {}
        }
    }

    fn allocate(&mut self, size: usize, align: usize, zeroed: bool) {
        let layout = Layout::from_size_align(size, align).unwrap();
        // SAFETY: the layout has a size.
        let start = unsafe {
            if zeroed { self.heap.alloc_zeroed(layout) } else { self.heap.alloc(layout) }
        };
        if start.is_null() {
            assert!(self.heap.stats().budget_bytes.is_some());
            return;
        }
        assert!(start.addr().is_multiple_of(align), "{layout:?}");
        let mut block = Block { start, layout, value: 0 };
        if zeroed {
            assert!(block.bytes().iter().all(|&byte| byte == 0), "{layout:?}");
        }
        self.count = self.count.wrapping_add(1);
        block.fill(self.count);
        let (from, to) = (start.addr(), start.addr() + size);
        for other in &self.blocks {
            let begin = other.start.addr();
            assert!(to <= begin || begin + other.layout.size() <= from, "overlap");
        }
        self.blocks.push(block);
    }

    fn free(&self, block: &Block) {
        block.check();
        // SAFETY: the block is of this heap, and goes with this.
        unsafe { self.heap.dealloc(block.start, block.layout) };
    }

    fn resize(&mut self, index: usize, size: usize) {
        let block = &mut self.blocks[index];
        block.check();
        // SAFETY: the block is of this heap; the size is not zero.
        let start = unsafe { self.heap.realloc(block.start, block.layout, size) };
        if start.is_null() {
            assert!(self.heap.stats().budget_bytes.is_some());
            return block.check();
        }
        assert!(start.addr().is_multiple_of(block.layout.align()));
        let common = block.layout.size().min(size);
        block.start = start;
        block.layout = Layout::from_size_align(size, block.layout.align()).unwrap();
        assert!(block.bytes()[..common].iter().all(|&byte| byte == block.value));
        let value = block.value;
        block.fill(value);
    }

    fn check_counters(&self) {
        let stats = self.heap.stats();
        assert_eq!(stats.live_blocks, self.blocks.len());
        let asked: usize = self.blocks.iter().map(|block| block.layout.size()).sum();
        assert!(stats.live_bytes >= asked, "{stats}");
        let classes: usize = stats.classes().map(|class| class.live_blocks).sum();
        assert_eq!(classes + stats.large().0, stats.live_blocks);
        if let Some(budget) = stats.budget_bytes {
            assert!(stats.resident_bytes + stats.lent_bytes <= budget, "{stats}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_what_was_asked_for(
        actions in proptest::collection::vec(action(), 1..400),
        budget in prop_oneof![2 => Just(None), 1 => (1usize..6000).prop_map(Some)],
    ) {
        let heap = heap(budget.map(|pages| pages * page_size()));
        let mut model = Model { heap: &heap, blocks: Vec::new(), count: 0 };
        for action in actions {
            model.run(action);
            model.check_counters();
        }
        for block in std::mem::take(&mut model.blocks) {
            model.free(&block);
        }
        model.check_counters();
        heap.purge();
        let stats = heap.stats();
        prop_assert_eq!((stats.live_bytes, stats.resident_bytes, stats.lent_bytes), (0, 0, 0));
    }
}

/// Each thread frees what others have allocated as well as its own.
#[test]
fn blocks_cross_threads() {
    const THREADS: usize = 4;
    let heap = heap(None);
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<Block>()).unzip();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let (heap, senders) = (&heap, senders.clone());
            threads.push(scope.spawn(move || {
                let mut rng = Rng(thread as u64 + 1);
                let mut model = Model { heap, blocks: Vec::new(), count: thread as u8 };
                for step in 0..20_000 {
                    let bound = 8 << rng.below(14);
                    let size = 1 + rng.below(bound);
                    let layout = Layout::from_size_align(size, 8).unwrap();
                    // SAFETY: the layout has a size.
                    let start = unsafe { heap.alloc(layout) };
                    let mut block = Block { start, layout, value: 0 };
                    block.fill(step as u8);
                    match rng.below(3) {
                        0 => senders[rng.below(THREADS)].send(block).unwrap_or_else(|back| {
                            model.free(&back.0);
                        }),
                        _ => model.blocks.push(block),
                    }
                    receiver.try_iter().for_each(|block| model.free(&block));
                    if model.blocks.len() > 200 {
                        let block = model.blocks.swap_remove(rng.below(200));
                        model.free(&block);
                    }
                }
                drop(senders);
                std::mem::take(&mut model.blocks).iter().for_each(|block| model.free(block));
                receiver.iter().for_each(|block| model.free(&block));
            }));
        }
        drop(senders);
        // Joined one by one: the end of a scope does not wait until threads have given their caches
        // back.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(heap.stats().live_blocks, 0, "{:#}", heap.stats());
    heap.purge();
    assert_eq!((heap.stats().resident_bytes, heap.stats().lent_bytes), (0, 0), "{}", heap.stats());
}
