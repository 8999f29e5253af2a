//! Heaps against a model: blocks do not overlap, are aligned, keep their content, start as zeroes
//! where that was asked for; the counters are exact; other threads free.

#![allow(missing_docs, reason = "a test")]

#[path = "support/heap_interpreter.rs"]
mod heap_interpreter;
mod support;

use heap_interpreter::{Action, Block, Model, Setup, run};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout};
use std::sync::mpsc::channel;
use support::Rng;

/// Address space that cannot run out here, in chunks.
const SPACIOUS: usize = 1 << 15;

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
    let elsewhere = || proptest::bool::weighted(0.1);
    prop_oneof![
        6 => (size(), align, any::<bool>(), elsewhere()).prop_map(
            |(size, align, zeroed, elsewhere)| {
                Action::Allocate { size, align: 1 << align, zeroed, elsewhere }
            }
        ),
        4 => (any::<usize>(), elsewhere())
            .prop_map(|(which, elsewhere)| Action::Free { which, elsewhere }),
        3 => (any::<usize>(), size()).prop_map(|(which, size)| Action::Resize { which, size }),
        1 => Just(Action::Purge),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn blocks_are_what_was_asked_for(
        actions in proptest::collection::vec(action(), 1..400),
        reserve in prop_oneof![3 => Just(SPACIOUS), 1 => 1usize..40],
        budget in prop_oneof![2 => Just(None), 1 => (1usize..6000).prop_map(Some)],
    ) {
        run(Setup { reserve, budget }, actions);
    }
}

/// Each thread frees what others have allocated as well as its own.
#[test]
fn blocks_cross_threads() {
    const THREADS: usize = 4;
    let setup = Setup { reserve: SPACIOUS, budget: None };
    let heap = setup.heap();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<Block>()).unzip();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (thread, receiver) in receivers.into_iter().enumerate() {
            let (heap, senders) = (&heap, senders.clone());
            threads.push(scope.spawn(move || {
                let mut rng = Rng(thread as u64 + 1);
                let mut model = Model::new(heap, setup);
                for step in 0..20_000 {
                    let bound = 8 << rng.below(14);
                    let size = 1 + rng.below(bound);
                    let layout = Layout::from_size_align(size, 8).unwrap();
                    // SAFETY: the layout has a size.
                    let start = unsafe { heap.alloc(layout) };
                    let block = Block::new(start, layout, step as u8);
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
