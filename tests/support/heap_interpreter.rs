//! What a program may do to a heap, done and checked against a model. Used by the property test of
//! heaps and by their fuzz target: each decides in its own way what to do next.

use lacuna::{Arena, Heap, page_size};
use std::alloc::{GlobalAlloc, Layout};

const CHUNK: usize = 2 << 20;

/// Bytes in use at most: what is beyond is not tried, since machines that test are small.
const MOST: usize = 256 << 20;

/// A block, and what it was filled with.
pub(crate) struct Block {
    start: *mut u8,
    layout: Layout,
    value: u8,
}

// SAFETY: a block is its holder's alone.
unsafe impl Send for Block {}

impl Block {
    /// A block that was just allocated, filled.
    pub(crate) fn new(start: *mut u8, layout: Layout, value: u8) -> Self {
        let mut block = Self { start, layout, value };
        block.fill(value);
        block
    }

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

    fn overlaps(&self, other: &Self) -> bool {
        let end = |block: &Self| block.start.addr() + block.layout.size();
        self.start.addr() < end(other) && other.start.addr() < end(self)
    }
}

/// An operation. What is done elsewhere is done by a thread that ends with it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    Allocate { size: usize, align: usize, zeroed: bool, elsewhere: bool },
    Free { which: usize, elsewhere: bool },
    Resize { which: usize, size: usize },
    Purge,
}

/// The heap to do it to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// In chunks, at least one.
    pub(crate) reserve: usize,
    /// In pages, at least one.
    pub(crate) budget: Option<usize>,
}

impl Setup {
    pub(crate) fn heap(self) -> Heap {
        let mut builder = Arena::builder(self.reserve * CHUNK).name("tested");
        if let Some(pages) = self.budget {
            builder = builder.budget(pages * page_size());
        }
        Heap::new(builder.reserve().unwrap()).unwrap()
    }

    /// Whether null is an answer to be expected of a heap that may have `MOST` bytes in use, each
    /// block of them in a chunk of its own at worst.
    fn is_tight(self) -> bool {
        self.budget.is_some() || self.reserve < 1 << 15
    }
}

/// Does all of it to a new heap, and checks that nothing is left in the end.
pub(crate) fn run(setup: Setup, actions: impl IntoIterator<Item = Action>) {
    let heap = setup.heap();
    let mut model = Model::new(&heap, setup);
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
    assert_eq!((stats.live_bytes, stats.resident_bytes, stats.lent_bytes), (0, 0, 0), "{stats}");
    check_room(&heap, setup);
}

/// A heap without blocks has room for one that takes all of it, whatever was there before.
fn check_room(heap: &Heap, setup: Setup) {
    let budget = setup.budget.map_or(usize::MAX, |pages| pages * page_size());
    let size = (setup.reserve * CHUNK).min(budget / CHUNK * CHUNK);
    let Ok(layout) = Layout::from_size_align(size.max(page_size()), 8) else { return };
    // SAFETY: the layout has a size.
    let block = unsafe { heap.alloc(layout) };
    assert!(!block.is_null(), "{layout:?}, {setup:?}: {}", heap.stats());
    // SAFETY: the block is of this heap, and freed once.
    unsafe { heap.dealloc(block, layout) };
}

/// Runs `work` in a thread that ends with it, or in this one.
fn somewhere<R: Send>(elsewhere: bool, work: impl FnOnce() -> R + Send) -> R {
    match elsewhere {
        // Joined: the end of a scope does not wait until threads have given their caches back.
        true => std::thread::scope(|scope| scope.spawn(work).join().unwrap()),
        false => work(),
    }
}

/// A heap, and the blocks that should be in it.
pub(crate) struct Model<'a> {
    heap: &'a Heap,
    setup: Setup,
    pub(crate) blocks: Vec<Block>,
    count: u8,
}

impl<'a> Model<'a> {
    pub(crate) fn new(heap: &'a Heap, setup: Setup) -> Self {
        Self { heap, setup, blocks: Vec::new(), count: 0 }
    }

    fn run(&mut self, action: Action) {
        match action {
            Action::Allocate { size, align, zeroed, elsewhere } => {
                let layout = Layout::from_size_align(size, align).unwrap();
                if self.asked() + size <= MOST {
                    self.allocate(layout, zeroed, elsewhere);
                }
            }
            Action::Free { which, elsewhere } if !self.blocks.is_empty() => {
                let block = self.blocks.swap_remove(which % self.blocks.len());
                let heap = self.heap;
                somewhere(elsewhere, move || free(heap, &block));
            }
            Action::Resize { which, size } if !self.blocks.is_empty() => {
                let index = which % self.blocks.len();
                if self.asked() + size <= MOST {
                    self.resize(index, size);
                }
            }
            Action::Purge => self.heap.purge(),
            Action::Free { .. } | Action::Resize { .. } => {}
        }
    }

    fn asked(&self) -> usize {
        self.blocks.iter().map(|block| block.layout.size()).sum()
    }

    fn allocate(&mut self, layout: Layout, zeroed: bool, elsewhere: bool) {
        let heap = self.heap;
        self.count = self.count.wrapping_add(1);
        let value = self.count;
        let block = somewhere(elsewhere, || allocate(heap, layout, zeroed, value));
        let Some(block) = block else { return assert!(self.setup.is_tight(), "{layout:?}") };
        assert!(self.blocks.iter().all(|other| !block.overlaps(other)), "overlap");
        self.blocks.push(block);
    }

    pub(crate) fn free(&self, block: &Block) {
        free(self.heap, block);
    }

    fn resize(&mut self, index: usize, size: usize) {
        let block = &mut self.blocks[index];
        block.check();
        // SAFETY: the block is of this heap; the size is not zero.
        let start = unsafe { self.heap.realloc(block.start, block.layout, size) };
        if start.is_null() {
            assert!(self.setup.is_tight() && size > block.layout.size());
            return block.check();
        }
        assert!(start.addr().is_multiple_of(block.layout.align()));
        let common = block.layout.size().min(size);
        block.start = start;
        block.layout = Layout::from_size_align(size, block.layout.align()).unwrap();
        assert!(block.bytes()[..common].iter().all(|&byte| byte == block.value));
        let value = block.value;
        block.fill(value);
        let others = self.blocks.iter().enumerate().filter(|(other, _)| *other != index);
        let block = &self.blocks[index];
        assert!(others.into_iter().all(|(_, other)| !block.overlaps(other)), "overlap");
    }

    fn check_counters(&self) {
        let stats = self.heap.stats();
        assert_eq!(stats.live_blocks, self.blocks.len());
        assert!(stats.live_bytes >= self.asked(), "{stats}");
        let classes: usize = stats.classes().map(|class| class.live_blocks).sum();
        assert_eq!(classes + stats.large().0, stats.live_blocks);
        if let Some(budget) = stats.budget_bytes {
            assert!(stats.resident_bytes + stats.lent_bytes <= budget, "{stats}");
        }
    }
}

/// A filled block; `None` if the heap says no.
fn allocate(heap: &Heap, layout: Layout, zeroed: bool, value: u8) -> Option<Block> {
    // SAFETY: the layout has a size.
    let start = unsafe { if zeroed { heap.alloc_zeroed(layout) } else { heap.alloc(layout) } };
    if start.is_null() {
        return None;
    }
    assert!(start.addr().is_multiple_of(layout.align()), "{layout:?}");
    if zeroed {
        let block = Block { start, layout, value: 0 };
        assert!(block.bytes().iter().all(|&byte| byte == 0), "{layout:?}");
    }
    Some(Block::new(start, layout, value))
}

fn free(heap: &Heap, block: &Block) {
    block.check();
    // SAFETY: the block is of this heap, and its holder gives it up.
    unsafe { heap.dealloc(block.start, block.layout) };
}
