//! A program, this one, that runs on lacuna.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{HeapStats, Lacuna};
use std::alloc::{GlobalAlloc, Layout};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::{Watchdog, assert_success, in_child, rerun, stderr, text};

#[global_allocator]
static GLOBAL: Lacuna = Lacuna::new();

const MIB: usize = 1 << 20;

#[test]
fn collections_work() {
    let mut map: HashMap<String, Vec<u64>> = HashMap::new();
    for index in 0..50_000u64 {
        map.entry(format!("key {}", index % 5000)).or_default().push(index);
    }
    let tree: BTreeMap<_, _> = map.into_iter().collect();
    assert_eq!(tree.len(), 5000);
    assert_eq!(tree["key 17"], (0..10).map(|round| 17 + 5000 * round).collect::<Vec<_>>());
}

#[test]
fn huge_vectors_cost_what_is_in_them() {
    let start = Instant::now();
    let mut huge: Vec<u8> = Vec::with_capacity(64 << 30);
    let time = start.elapsed();
    assert!(time < Duration::from_millis(1), "{time:?}");
    huge.extend_from_slice(b"little");
    assert_eq!(huge.len(), 6);
    // More than there is.
    assert!(Vec::<u8>::new().try_reserve(1 << 45).is_err());
    assert!(Vec::<u64>::new().try_reserve(usize::MAX / 8).is_err());
}

#[test]
fn a_budget_is_met_as_an_error() {
    const NAME: &str = "a_budget_is_met_as_an_error";
    if std::env::var_os("ROLE_BUDGET").is_none() {
        let output = rerun(NAME, &[("ROLE_BUDGET", "1"), ("LACUNA_BUDGET", "64M")]);
        return assert_success(&output);
    }
    assert_eq!(GLOBAL.stats().budget_bytes, Some(64 * MIB));
    let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(1000);
    loop {
        let mut block = Vec::new();
        if block.try_reserve_exact(MIB - 100_000).is_err() {
            break;
        }
        block.resize(MIB - 100_000, 1u8);
        blocks.push(block);
        let stats = GLOBAL.stats();
        assert!(stats.resident_bytes + stats.lent_bytes <= 64 * MIB);
    }
    assert!(blocks.len() > 60, "{}", blocks.len());
    let half = blocks.len() / 2;
    blocks.truncate(half);
    for _ in 0..half {
        let mut block: Vec<u8> = Vec::new();
        block.try_reserve_exact(MIB - 100_000).unwrap();
        blocks.push(block);
    }
}

#[test]
fn the_environment_is_heard() {
    const NAME: &str = "collections_work";
    let output = rerun(NAME, &[("LACUNA_STATS", "1")]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(stderr(&output).contains("blocks of"), "{}", text(&output));
    for malformed in ["much", "", "12Q", "-1", "1e9"] {
        let output = rerun(NAME, &[("LACUNA_BUDGET", malformed)]);
        assert_eq!(output.status.code(), Some(2), "{}", text(&output));
        let line = format!("LACUNA_BUDGET={malformed}: not a number of bytes");
        assert!(stderr(&output).contains(&line), "{}", text(&output));
    }
}

/// Allocates when its thread ends, and frees what the thread had.
struct Late(Vec<String>);

impl Drop for Late {
    fn drop(&mut self) {
        self.0.push("from a destructor".repeat(self.0.len()));
        let more: Vec<String> = (0..100).map(|index| index.to_string()).collect();
        assert_eq!(more.len(), 100);
    }
}

thread_local! {
    static LATE: RefCell<Late> = const { RefCell::new(Late(Vec::new())) };
}

/// A destructor of a C key, which may run after lacuna's own has taken the thread's caches back.
extern "C" fn key_destructor(value: *mut libc::c_void) {
    // SAFETY: the value is a boxed vector of the thread below.
    let mut strings = *unsafe { Box::from_raw(value.cast::<Vec<String>>()) };
    strings.extend((0..500).map(|index| "x".repeat(index)));
    assert_eq!(strings.iter().map(String::len).sum::<usize>(), 500 * 499 / 2 + 8);
    CALLED.fetch_add(1, Ordering::Relaxed);
}

static CALLED: AtomicUsize = AtomicUsize::new(0);

#[test]
fn destructors_of_thread_locals_may_allocate() {
    let mut key = 0;
    // SAFETY: the destructor is a function.
    assert_eq!(unsafe { libc::pthread_key_create(&raw mut key, Some(key_destructor)) }, 0);
    for _ in 0..200 {
        std::thread::spawn(move || {
            LATE.with_borrow_mut(|late| late.0.push("from the thread".into()));
            let value = Box::into_raw(Box::new(vec!["a string".to_owned()]));
            // SAFETY: the key is ours, and the value for its destructor.
            assert_eq!(unsafe { libc::pthread_setspecific(key, value.cast()) }, 0);
        })
        .join()
        .unwrap();
    }
    assert_eq!(CALLED.load(Ordering::Relaxed), 200);
}

/// What a process has taken.
#[derive(Debug)]
struct Footprint {
    live_blocks: usize,
    resident_bytes: usize,
    /// By the kernel's account, whatever it is of.
    rss: usize,
    mappings: usize,
}

impl Footprint {
    fn now() -> Self {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        drop(statm);
        let HeapStats { live_blocks, resident_bytes, .. } = GLOBAL.stats();
        Self { live_blocks, resident_bytes, rss: pages * lacuna::page_size(), mappings }
    }
}

/// Starts so many threads that allocate a little and end, four at a time.
fn churn(threads: usize) {
    for round in 0..threads / 4 {
        let threads: Vec<_> = (0..4)
            .map(|thread| std::thread::spawn(move || vec![round; 10 + thread].len()))
            .collect();
        threads.into_iter().for_each(|thread| _ = thread.join().unwrap());
    }
}

/// In a process of its own, since others would allocate meanwhile.
#[test]
fn thread_churn_leaks_nothing() {
    let output = in_child("thread_churn_leaks_nothing", "churn", || {
        churn(400);
        let before = Footprint::now();
        churn(100_000);
        let after = Footprint::now();
        println!("{before:?}\n{after:?}");
        assert_eq!(after.live_blocks, before.live_blocks, "{:#}", GLOBAL.stats());
        assert!(after.resident_bytes <= before.resident_bytes + MIB / 2);
        assert!(after.rss <= before.rss + MIB);
        // The C library keeps the stacks of some threads that have ended.
        assert!(after.mappings <= before.mappings + 16);
    });
    assert_success(&output);
}

/// Forks while other threads allocate; parent and child both go on.
#[test]
fn forks_under_load() {
    let _watchdog = Watchdog::new("forks", 120);
    let output = in_child("forks_under_load", "forker", || {
        let stop = Arc::new(AtomicBool::new(false));
        let load: Vec<_> = (0..3)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut kept: Vec<String> = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        kept.extend((0..50).map(|index| "y".repeat(index * 37)));
                        kept.truncate(kept.len() / 2);
                    }
                })
            })
            .collect();
        for round in 0..1000 {
            let mine: Vec<String> = (0..20).map(|index| "z".repeat(index * 100)).collect();
            // SAFETY: the child only allocates, and ends.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if child == 0 {
                let theirs: Vec<String> = (0..500).map(|index| "c".repeat(index * 10)).collect();
                let right = mine.iter().map(String::len).sum::<usize>() == 19_000
                    && theirs.iter().map(String::len).sum::<usize>() == 499 * 500 * 5;
                drop((mine, theirs));
                // SAFETY: it ends the child at once.
                unsafe { libc::_exit(if right { 0 } else { 1 }) };
            }
            let mut status = 0;
            // SAFETY: the child is this process's.
            assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
            assert_eq!(status, 0, "round {round}");
        }
        stop.store(true, Ordering::Relaxed);
        load.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_success(&output);
}

#[test]
fn statistics_count_what_there_is() {
    let output = in_child("statistics_count_what_there_is", "counter", || {
        let before = GLOBAL.stats();
        let blocks: Vec<Box<[u8; 1000]>> = (0..5000).map(|_| Box::new([1; 1000])).collect();
        let during = GLOBAL.stats();
        assert!(during.live_blocks - before.live_blocks >= 5001);
        let of_1024 = |stats: &HeapStats| {
            stats.classes().find(|class| class.block_bytes == 1024).unwrap().live_blocks
        };
        assert_eq!(of_1024(&during) - of_1024(&before), 5000);
        assert!(during.resident_bytes >= before.resident_bytes + 4 * MIB);
        assert!(during.to_string().contains("blocks of"), "{during}");
        drop(blocks);
        // The test runner's own thread may allocate meanwhile, but nothing of this size.
        assert_eq!(of_1024(&GLOBAL.stats()), of_1024(&before));
        GLOBAL.purge();
        assert!(GLOBAL.stats().resident_bytes < before.resident_bytes + MIB);
    });
    assert_success(&output);
}

#[test]
fn several_of_them_can_be_used() {
    static SECOND: Lacuna = Lacuna::new().reserve(1 << 30).budget(1 << 20);
    let layout = Layout::new::<[u64; 64]>();
    let mut blocks = Vec::new();
    loop {
        // SAFETY: the layout has a size.
        let block = unsafe { SECOND.alloc(layout) };
        if block.is_null() {
            break;
        }
        blocks.push(block);
    }
    assert!((1800..=2048).contains(&blocks.len()), "{}", blocks.len());
    assert_eq!(SECOND.stats().live_blocks, blocks.len());
    for block in blocks {
        // SAFETY: the block is of this one, and freed once.
        unsafe { SECOND.dealloc(block, layout) };
    }
    assert_eq!(SECOND.stats().live_bytes, 0);
}
