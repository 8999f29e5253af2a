//! Collections in a heap of their own, by `Allocator` for `&Heap`.

#![allow(missing_docs, reason = "a test")]
#![cfg(feature = "allocator-api2")]

use allocator_api2::alloc::{Allocator, Layout};
use allocator_api2::boxed::Box;
use allocator_api2::vec::Vec;
use hashbrown::HashMap;
use lacuna::{Arena, Heap};

fn heap(budget: usize) -> Heap {
    Heap::new(Arena::builder(1 << 34).budget(budget).reserve().unwrap()).unwrap()
}

#[test]
fn vectors_and_maps_live_in_a_heap() {
    let heap = heap(256 << 20);
    {
        let mut map: HashMap<u64, Box<[u64; 20], &Heap>, _, &Heap> = HashMap::new_in(&heap);
        for key in 0..50_000 {
            map.insert(key, Box::new_in([key; 20], &heap));
        }
        for key in (0..50_000).step_by(2) {
            assert_eq!(*map.remove(&key).unwrap(), [key; 20]);
        }
        assert_eq!(map.len(), 25_000);
        assert_eq!(heap.stats().live_blocks, 25_001);
        assert!((1..50_000).step_by(2).all(|key| map[&key][19] == key));
    }
    assert_eq!(heap.stats().live_bytes, 0);
}

#[test]
fn a_vector_that_would_pass_the_budget_says_so() {
    let heap = heap(8 << 20);
    let mut vector: Vec<u64, &Heap> = Vec::new_in(&heap);
    while vector.try_reserve(1).is_ok() {
        vector.push(vector.len() as u64);
    }
    assert!(vector.len() >= 1 << 18, "{}", vector.len());
    assert!(vector.iter().enumerate().all(|(index, value)| index as u64 == *value));
    vector.truncate(10);
    vector.shrink_to_fit();
    // Where it is, on one huge page: there was no room for a smaller block beside it.
    assert!(heap.stats().live_bytes <= 2 << 20);
}

#[test]
fn blocks_of_no_size_are_nowhere() {
    let heap = &heap(1 << 20);
    let nothing = Layout::from_size_align(0, 64).unwrap();
    let something = Layout::from_size_align(100, 64).unwrap();
    let block = heap.allocate(nothing).unwrap();
    assert_eq!((block.len(), heap.stats().live_blocks), (0, 0));
    // SAFETY: each block is what was allocated last, with the layout that it has.
    unsafe {
        let grown = heap.grow_zeroed(block.cast(), nothing, something).unwrap();
        assert!(grown.cast::<u8>().as_ptr().addr().is_multiple_of(64));
        assert!(grown.as_ref().iter().all(|&byte| byte == 0));
        let shrunk = heap.shrink(grown.cast(), something, nothing).unwrap();
        assert_eq!(heap.stats().live_blocks, 0);
        heap.deallocate(shrunk.cast(), nothing);
    }
}

/// As from 16-byte alignment to a page's, and back.
#[test]
fn alignment_may_change() {
    let heap = &heap(1 << 20);
    let plain = Layout::from_size_align(1000, 8).unwrap();
    let aligned = Layout::from_size_align(3000, 4096).unwrap();
    let block = heap.allocate(plain).unwrap();
    // SAFETY: as above; the bytes that are read were written.
    unsafe {
        block.cast::<u8>().write_bytes(7, 1000);
        let grown = heap.grow(block.cast(), plain, aligned).unwrap();
        assert!(grown.cast::<u8>().as_ptr().addr().is_multiple_of(4096));
        assert!(
            std::slice::from_raw_parts(grown.cast::<u8>().as_ptr(), 1000).iter().all(|&b| b == 7)
        );
        heap.deallocate(grown.cast(), aligned);
    }
    assert_eq!(heap.stats().live_bytes, 0);
}
