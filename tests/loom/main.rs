//! The lock-free protocols of the fault path, run through every interleaving that loom can tell
//! apart. The source files are the library's own, compiled here with loom's atomics.

#![allow(missing_docs, reason = "a test")]
#![allow(dead_code, reason = "each protocol uses a part of its file")]
#![allow(unreachable_pub, reason = "the files are compiled into this crate for testing alone")]

mod atomic {
    pub(crate) use loom::cell::UnsafeCell;
    pub(crate) use loom::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
}

mod fault;

#[path = "../../src/arena/publish.rs"]
mod publish;

#[path = "../../src/heap/block.rs"]
mod block;

mod heap;
mod log;

use atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, UnsafeCell};
use fault::chunk::ChunkState;
use fault::ledger::{Charge, Ledger};
use fault::registry::{Entry, Lookup, Node, Registry};
use loom::sync::Arc;
use loom::sync::atomic::fence;
use loom::thread;

/// What an arena would be: loom notices if it is read while it is written or gone.
struct Value(u32);

const FIRST: usize = 0x00;
const SECOND: usize = 0x10;
const READER: u32 = 1;
const FORKER: u32 = 2;

fn entry(value: u32) -> &'static Entry<Value> {
    let value = UnsafeCell::new(Some(Value(value)));
    Box::leak(Box::new(Entry { pins: AtomicU32::new(0), value }))
}

fn slot() -> AtomicPtr<Entry<Value>> {
    AtomicPtr::new(std::ptr::null_mut())
}

fn node() -> Option<&'static Node<Value>> {
    Some(Box::leak(Box::new(Node([slot(), slot()]))))
}

fn registry() -> Arc<Registry<Value>> {
    Arc::new(Registry { root: [slot()], gate: AtomicU32::new(0) })
}

fn publish(registry: &Registry<Value>, address: usize, entry: &'static Entry<Value>) {
    assert!(registry.publish(address..address + 0x10, entry, &mut node));
}

/// Takes the entry out and waits as the registrar does, then ends its value.
fn retire(registry: &Registry<Value>, address: usize, entry: &'static Entry<Value>) {
    registry.unpublish(address..address + 0x10);
    while !entry.is_drained() {
        thread::yield_now();
    }
    // SAFETY: drained; loom checks that nobody reads.
    entry.value.with_mut(|value| unsafe { *value = None });
}

fn read(registry: &Registry<Value>, address: usize) -> Option<u32> {
    match registry.pin(address, || READER) {
        Lookup::Found(value) => Some(value.0),
        Lookup::Nothing | Lookup::Retry => None,
    }
}

#[test]
fn a_pinned_region_outlives_its_retirement() {
    loom::model(|| {
        let (registry, old) = (registry(), entry(7));
        publish(&registry, FIRST, old);
        let reader = {
            let registry = registry.clone();
            thread::spawn(move || read(&registry, FIRST + 3))
        };
        retire(&registry, FIRST, old);
        assert!(matches!(reader.join().unwrap(), None | Some(7)));
        assert_eq!(read(&registry, FIRST), None);
    });
}

#[test]
fn a_reused_entry_never_answers_for_its_old_address() {
    loom::model(|| {
        let (registry, seat) = (registry(), entry(7));
        publish(&registry, FIRST, seat);
        let reader = {
            let registry = registry.clone();
            thread::spawn(move || (read(&registry, FIRST), read(&registry, SECOND)))
        };
        retire(&registry, FIRST, seat);
        // SAFETY: vacated; loom checks that nobody reads.
        seat.value.with_mut(|value| unsafe { *value = Some(Value(8)) });
        publish(&registry, SECOND, seat);
        let (first, second) = reader.join().unwrap();
        assert!(matches!(first, None | Some(7)));
        assert!(matches!(second, None | Some(8)));
        assert_eq!(read(&registry, SECOND), Some(8));
    });
}

/// Two arenas, one after the other, at the same address and in the same entry.
#[test]
fn an_address_that_is_used_again_is_the_new_regions() {
    loom::model(|| {
        let (registry, seat) = (registry(), entry(7));
        publish(&registry, FIRST, seat);
        let reader = {
            let registry = registry.clone();
            thread::spawn(move || (read(&registry, FIRST), read(&registry, FIRST)))
        };
        retire(&registry, FIRST, seat);
        // SAFETY: vacated; loom checks that nobody reads.
        seat.value.with_mut(|value| unsafe { *value = Some(Value(8)) });
        publish(&registry, FIRST, seat);
        let (first, second) = reader.join().unwrap();
        assert!(first != Some(8) || second == Some(8), "the old one came back: {second:?}");
        assert_eq!(read(&registry, FIRST), Some(8));
    });
}

#[test]
fn publishing_shows_a_whole_region_and_leaves_neighbours_alone() {
    loom::model(|| {
        let (registry, neighbour) = (registry(), entry(1));
        publish(&registry, SECOND, neighbour);
        let reader = {
            let registry = registry.clone();
            thread::spawn(move || {
                assert_eq!(read(&registry, SECOND), Some(1));
                read(&registry, FIRST)
            })
        };
        publish(&registry, FIRST, entry(7));
        assert!(matches!(reader.join().unwrap(), None | Some(7)));
    });
}

#[test]
fn nobody_is_inside_once_the_gate_is_closed() {
    loom::model(|| {
        let (registry, region) = (registry(), entry(7));
        publish(&registry, FIRST, region);
        // What a fault changes, and what the fork would copy half-way.
        let state = Arc::new(UnsafeCell::new(0));
        let reader = {
            let (registry, state) = (registry.clone(), state.clone());
            thread::spawn(move || {
                if let Lookup::Found(_pinned) = registry.pin(FIRST, || READER) {
                    // SAFETY: loom checks that nobody else is at it.
                    state.with_mut(|state| unsafe { *state += 1 });
                }
            })
        };
        registry.gate.store(FORKER, Ordering::Relaxed);
        while !region.is_drained() {
            thread::yield_now();
        }
        // SAFETY: as above.
        state.with_mut(|state| unsafe { *state += 1 });
        // The forking thread itself may still fault.
        assert!(matches!(registry.pin(FIRST, || FORKER), Lookup::Found(_)));
        registry.gate.store(0, Ordering::Release);
        reader.join().unwrap();
    });
}

/// One page of a chunk, as the kernel, the bits and the counters see it.
struct Page {
    chunk: ChunkState,
    ledger: Ledger,
    bit: AtomicU64,
    /// The page table; loom notices if two change it at once.
    kernel: UnsafeCell<bool>,
}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            chunk: ChunkState(AtomicU32::new(0)),
            ledger: Ledger::new(),
            bit: AtomicU64::new(0),
            kernel: UnsafeCell::new(false),
        })
    }

    /// A fault: charge, install, set the bit, settle.
    fn fault(&self, budget: u64) {
        if !self.chunk.enter() {
            return;
        }
        if self.bit.load(Ordering::Acquire) == 0
            && self.ledger.charge(1, budget) == Charge::Promised(1)
        {
            // SAFETY: loom checks that nobody else is at it.
            self.kernel.with_mut(|page| unsafe { *page = true });
            self.bit.fetch_or(1, Ordering::Release);
            self.ledger.settle(1, 1, 0);
        }
        self.chunk.leave();
    }

    /// A discard, by the chunk's owner.
    fn discard(&self) {
        while !self.chunk.claim() {
            thread::yield_now();
        }
        while !self.chunk.is_quiet() {
            thread::yield_now();
        }
        if self.bit.load(Ordering::Acquire) == 1 {
            // SAFETY: as above.
            self.kernel.with_mut(|page| unsafe { *page = false });
            self.bit.fetch_and(0, Ordering::Relaxed);
            self.ledger.release(1, 0);
        }
        self.chunk.release();
    }

    fn is_in_step(&self) {
        // SAFETY: as above.
        let present = self.kernel.with(|page| unsafe { *page });
        assert_eq!(present, self.bit.load(Ordering::Acquire) == 1);
        assert_eq!(u64::from(present), self.ledger.balance().resident);
        assert_eq!(0, self.ledger.balance().lent);
    }
}

#[test]
fn a_discard_and_a_fault_keep_page_bit_and_counters_in_step() {
    loom::model(|| {
        let page = Page::new();
        page.fault(1);
        let other = page.clone();
        let faulter = thread::spawn(move || other.fault(1));
        page.discard();
        faulter.join().unwrap();
        page.is_in_step();
    });
}

#[test]
fn two_discards_give_back_once() {
    loom::model(|| {
        let page = Page::new();
        page.fault(1);
        let other = page.clone();
        let discarder = thread::spawn(move || other.discard());
        page.discard();
        discarder.join().unwrap();
        page.is_in_step();
        assert_eq!(page.ledger.balance().resident, 0);
    });
}

/// What `fault::lend` does about a full budget: a lent chunk is charged one page that is not there, and
/// its mark goes after that charge.
struct Lent {
    ledger: Ledger,
    chunk: ChunkState,
    mark: AtomicU64,
}

impl Lent {
    /// As `recall` and `unmark`, by the chunk's owner.
    fn recall(&self) {
        if !self.chunk.claim() {
            return;
        }
        if self.chunk.is_lent() {
            self.chunk.set_recalled(true);
            self.ledger.release(0, 1);
            fence(Ordering::Release);
            self.mark.fetch_and(0, Ordering::Relaxed);
        }
        self.chunk.release();
    }

    /// As `is_exhausted`, after a refusal.
    fn is_exhausted(&self) -> bool {
        if self.mark.load(Ordering::Relaxed) != 0 {
            self.recall();
            return false;
        }
        fence(Ordering::Acquire);
        self.ledger.is_full(1)
    }
}

#[test]
fn nobody_dies_for_want_of_what_a_recall_gives_back() {
    loom::model(|| {
        let chunk = ChunkState(AtomicU32::new(0));
        let lent = Arc::new(Lent { ledger: Ledger::new(), chunk, mark: AtomicU64::new(1) });
        lent.chunk.set_lent();
        assert_eq!(lent.ledger.charge(1, 1), Charge::Promised(1));
        lent.ledger.settle(1, 0, 1);
        let other = lent.clone();
        let recaller = thread::spawn(move || other.recall());
        if lent.ledger.charge(1, 1) == Charge::Exhausted {
            assert!(!lent.is_exhausted(), "the chunk's charge was to be had");
        }
        recaller.join().unwrap();
    });
}

#[test]
fn lending_sees_a_lower_limit_or_is_seen() {
    loom::model(|| {
        let shared = Arc::new((AtomicU64::new(9), AtomicU64::new(0)));
        let other = shared.clone();
        let lender = thread::spawn(move || {
            let (limit, mark) = &*other;
            mark.fetch_or(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            limit.load(Ordering::Relaxed) == 9
        });
        let (limit, mark) = &*shared;
        limit.swap(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let seen = mark.load(Ordering::Relaxed) != 0;
        assert!(!lender.join().unwrap() || seen, "lent past the limit, and not recalled");
    });
}

#[test]
fn a_refusal_is_final_only_when_all_pages_are_there() {
    loom::model(|| {
        let ledger = Arc::new(Ledger::new());
        let bits = Arc::new(AtomicU64::new(0));
        let (other, others_bits) = (ledger.clone(), bits.clone());
        let charger = thread::spawn(move || {
            if other.charge(1, 1) == Charge::Promised(1) {
                others_bits.store(1, Ordering::Relaxed);
                other.settle(1, 1, 0);
            }
        });
        match ledger.charge(1, 1) {
            Charge::Promised(pages) => {
                assert_eq!(pages, 1);
                ledger.settle(1, 0, 0);
            }
            Charge::Pending => {}
            // Whoever is refused for good sees the page that took the room.
            Charge::Exhausted => assert_eq!(bits.load(Ordering::Relaxed), 1),
        }
        charger.join().unwrap();
        let balance = ledger.balance();
        assert!(balance.resident <= 1 && balance.lent == 0);
    });
}
