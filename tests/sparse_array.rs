//! Sparse arrays against plain vectors.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{SparseArray, page_size};
use proptest::prelude::*;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

fn is_send<T: Send>() {}
fn is_sync<T: Sync>() {}

#[test]
fn arrays_go_where_their_elements_may() {
    is_send::<SparseArray<u8>>();
    is_sync::<SparseArray<AtomicU32>>();
}

/// An array of `SIZE`-byte elements, touched near the start, in the middle and at the end.
fn check_size<const SIZE: usize>() {
    let value: [u8; SIZE] = std::array::from_fn(|index| index as u8 ^ 0x5a);
    let len = (1 << 35) / SIZE;
    let mut array = SparseArray::filled(len, value).unwrap();
    assert_eq!(array.len(), len);
    for index in [0, 1, 4096 / SIZE, len / 2, len - 2, len - 1] {
        assert_eq!(array[index], value, "element {index} of {SIZE} bytes");
    }
    array[len / 2] = [1; SIZE];
    assert_eq!((array[len / 2 - 1], array[len / 2 + 1]), (value, value));
    assert_eq!(array[len / 2], [1; SIZE]);
    assert!(array.populated().any(|run| run.contains(&(len / 2))));
    array.reset().unwrap();
    assert_eq!(array[len / 2], value);
}

#[test]
fn elements_of_any_size() {
    check_size::<1>();
    check_size::<3>();
    check_size::<8>();
    check_size::<12>();
    check_size::<24>();
    check_size::<4096>();
    check_size::<4097>();
    check_size::<100_003>();
}

#[test]
fn a_table_of_two_to_the_fortieth() {
    let mut table = SparseArray::<u32>::filled(1 << 40, u32::MAX).unwrap();
    table[(1 << 40) - 1] = 7;
    table[12345] -= 1;
    assert_eq!(table.iter().skip(12345).take(2).collect::<Vec<_>>(), [&(u32::MAX - 1), &u32::MAX]);
    let per_page = page_size() / 4;
    let runs: Vec<_> = table.populated().collect();
    assert_eq!(runs.first().unwrap().start, 12345 / per_page * per_page);
    assert_eq!(runs.last().unwrap().end, 1 << 40);
    assert_eq!(table.arena().stats().reserved_bytes, 1 << 42);
}

#[test]
fn atomics_count_from_many_threads() {
    let hits = SparseArray::<AtomicU32>::zeroed(1 << 34).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let hits = &hits;
            scope.spawn(move || {
                for index in 0..20_000usize {
                    hits[index.wrapping_mul(0x9e37_79b9) % hits.len()]
                        .fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let sum: u64 = hits
        .populated()
        .flat_map(|run| hits[run].iter())
        .map(|hit| u64::from(hit.load(Ordering::Relaxed)))
        .sum();
    assert_eq!(sum, 80_000);
}

#[test]
fn system_calls_fill_what_was_populated() {
    let mut array = SparseArray::<u8>::filled(1 << 30, 9).unwrap();
    array.populate(100..10_000).unwrap();
    File::open("/dev/zero").unwrap().read_exact(&mut array[100..10_000]).unwrap();
    assert_eq!((array[99], array[100], array[9_999], array[10_000]), (9, 0, 0, 9));
}

/// The elements that lie, at least in part, on touched pages; touched elements by index.
fn runs_of(touched: &[usize], size: usize, len: usize) -> Vec<Range<usize>> {
    let page = page_size();
    let mut pages: Vec<usize> = touched
        .iter()
        .flat_map(|index| index * size / page..=((index + 1) * size - 1) / page)
        .collect();
    pages.sort_unstable();
    pages.dedup();
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in pages {
        let run = at * page / size..((at + 1) * page).div_ceil(size).min(len);
        match runs.last_mut() {
            Some(last) if run.start <= last.end => last.end = run.end,
            _ => runs.push(run),
        }
    }
    runs
}

type Odd = [u8; 1000];

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn populated_runs_are_those_of_the_touched_pages(
        touched in proptest::collection::btree_set(0usize..30_000, 1..40),
    ) {
        let len = 30_000;
        let mut array = SparseArray::<Odd>::filled_in(len, [1; 1000], |arena| {
            arena.window(lacuna::Window::Pages(1))
        }).unwrap();
        let touched: Vec<usize> = touched.into_iter().collect();
        for index in &touched {
            array[*index] = [2; 1000];
        }
        prop_assert_eq!(array.populated().collect::<Vec<_>>(), runs_of(&touched, 1000, len));
    }

    #[test]
    fn discarded_elements_have_their_first_value(
        writes in proptest::collection::vec(0usize..5000, 0..60),
        discards in proptest::collection::vec((0usize..=5000, 0usize..=5000), 0..6),
        zeroed: bool,
    ) {
        let value = if zeroed { [0; 3] } else { [7, 8, 9] };
        let mut array = match zeroed {
            true => SparseArray::<[u16; 3]>::zeroed(5000).unwrap(),
            false => SparseArray::filled(5000, value).unwrap(),
        };
        let mut model = vec![value; 5000];
        for (round, index) in writes.iter().enumerate() {
            array[*index] = [round as u16; 3];
            model[*index] = [round as u16; 3];
            if let Some((a, b)) = discards.get(round / 10).filter(|_| round % 10 == 9) {
                let range = *a.min(b)..*a.max(b);
                array.discard(range.clone()).unwrap();
                model[range].fill(value);
            }
        }
        prop_assert!(array[..] == model[..]);
    }
}
