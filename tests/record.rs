//! Recording the order of first touches, and replaying it.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{
    Access, Arena, ArenaBuilder, ErrorKind, OnFork, Operation, SparseArray, Template, Trace,
    Window, page_size,
};
use std::collections::HashSet;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::fork::{drop_copy, fork, raw_fork};
use support::{
    Rng, WINDOWS, Watchdog, bytes, discard, file_of, load, noise, numbered_pages, store,
};

const CHUNK: usize = 2 << 20;

/// Touches pages, each by a write or a read, in this order.
fn touch(arena: &Arena, touches: &[(usize, Access)]) {
    for &(page, access) in touches {
        match access {
            Access::Write => store(arena, page * page_size() + 7, 1),
            Access::Read => drop(load(arena, (page + 1) * page_size() - 1)),
        }
    }
}

/// The pages of a trace, one by one.
fn pages(trace: &Trace) -> Vec<(usize, Access)> {
    let page = page_size();
    trace
        .iter()
        .flat_map(|it| it.range.step_by(page).map(move |at| (at / page, it.access)))
        .collect()
}

fn record(arena: &Arena, touches: &[(usize, Access)]) -> Trace {
    arena.start_recording(touches.len().max(1)).unwrap();
    touch(arena, touches);
    let trace = arena.stop_recording().unwrap();
    assert!(trace.is_complete());
    trace
}

/// Different pages in an order without a pattern, with streams in it.
fn scattered(arena_pages: usize, count: usize, seed: u64) -> Vec<(usize, Access)> {
    let mut rng = Rng(seed);
    let mut seen = HashSet::new();
    let mut touches = Vec::new();
    while touches.len() < count {
        let first = rng.below(arena_pages);
        let run = if rng.below(4) == 0 { rng.below(60) } else { 1 };
        for page in first..(first + run).min(arena_pages) {
            if seen.insert(page) {
                let access = if rng.below(2) == 0 { Access::Read } else { Access::Write };
                touches.push((page, access));
            }
        }
    }
    touches
}

fn templates(len: usize) -> [Template; 5] {
    let image = noise(len / 2 + 100, 3);
    [
        Template::zero(),
        Template::repeat(&[1u8, 2, 3]).unwrap(),
        Template::bytes(&image).unwrap(),
        Template::file(&file_of(&image)).unwrap(),
        numbered_pages(),
    ]
}

/// Whatever the window, huge pages and lending would do.
#[test]
fn a_trace_is_what_was_touched_in_its_order() {
    let len = 4 * CHUNK;
    for template in templates(len) {
        for window in WINDOWS {
            let arena = Arena::builder(len).template(template.clone()).window(window);
            let arena = arena.reserve().unwrap();
            let touches = scattered(len / page_size(), 300, 5);
            let trace = record(&arena, &touches);
            assert_eq!(pages(&trace), touches, "{window:?}, {template:?}");
            assert_eq!(trace.len(), touches.len());
            assert_eq!((trace.page_size(), trace.arena_len()), (page_size(), len));
            let stats = arena.stats();
            assert_eq!(stats.resident_bytes + stats.lent_bytes, touches.len() * page_size());
        }
    }
}

#[test]
fn a_stream_is_one_run() {
    let arena = Arena::builder(4 * CHUNK).reserve().unwrap();
    let stream: Vec<_> = (0..1000).map(|page| (page, Access::Write)).collect();
    let trace = record(&arena, &stream);
    let runs: Vec<_> = trace.iter().map(|it| it.range).collect();
    assert_eq!(runs, std::slice::from_ref(&(0..1000 * page_size())));
    assert_eq!(arena.stats().faults, 1000);
}

/// What is present is not touched for the first time; what was discarded is recorded once.
#[test]
fn each_page_is_in_a_trace_once() {
    let arena = Arena::builder(4 * CHUNK).window(Window::Pages(1)).reserve().unwrap();
    arena.populate(0..page_size()).unwrap();
    arena.start_recording(10).unwrap();
    touch(&arena, &[(0, Access::Write), (2, Access::Read), (2, Access::Write), (1, Access::Write)]);
    discard(&arena, 0..arena.len());
    touch(&arena, &[(1, Access::Read), (2, Access::Write), (0, Access::Write)]);
    let trace = arena.stop_recording().unwrap();
    assert_eq!(pages(&trace), [(2, Access::Read), (1, Access::Write), (0, Access::Write)]);
}

/// Chunks that were lent before are taken back, so that touches of their pages are seen; and streams
/// and lending go on afterwards.
#[test]
fn lending_rests_while_it_goes_on() {
    let arena = Arena::builder(64 * CHUNK).reserve().unwrap();
    let lonely = |base: usize| {
        let pages = CHUNK / page_size();
        (0..8)
            .flat_map(move |chunk| [3, 9, 20].map(|at| (base + chunk * pages + at, Access::Write)))
    };
    touch(&arena, &lonely(0).collect::<Vec<_>>());
    assert_ne!(arena.stats().lent_bytes, 0);
    let more: Vec<_> = lonely(0).map(|(page, access)| (page + 50, access)).collect();
    let trace = record(&arena, &more);
    // What is left is pages that the kernel had filled.
    assert!(arena.stats().lent_bytes <= 24 * page_size());
    assert_eq!(pages(&trace), more);
    touch(&arena, &lonely(16 * CHUNK / page_size()).collect::<Vec<_>>());
    assert_ne!(arena.stats().lent_bytes, 0);
}

#[test]
fn threads_record_each_page_once() {
    let arena = Arena::builder(8 * CHUNK).reserve().unwrap();
    let count = arena.len() / page_size();
    let start = Barrier::new(4);
    arena.start_recording(4 * count).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (arena, start) = (&arena, &start);
            scope.spawn(move || {
                let mut order: Vec<_> = (0..count).collect();
                Rng(thread).shuffle(&mut order);
                start.wait();
                order.iter().for_each(|page| store(arena, page * page_size(), 1));
            });
        }
    });
    let trace = arena.stop_recording().unwrap();
    let mut touched: Vec<_> = pages(&trace).into_iter().map(|(page, _)| page).collect();
    touched.sort_unstable();
    assert_eq!(touched, (0..count).collect::<Vec<_>>());
}

/// A full log ends the recording, and windows work again.
#[test]
fn a_full_log_says_so() {
    let arena = Arena::builder(4 * CHUNK).window(Window::Pages(16)).reserve().unwrap();
    let stream: Vec<_> = (0..160).map(|page| (page, Access::Write)).collect();
    arena.start_recording(16).unwrap();
    touch(&arena, &stream);
    let trace = arena.stop_recording().unwrap();
    assert_eq!(pages(&trace), stream[..16]);
    assert!(!trace.is_complete());
    // The seventeenth found the log full, and was the last to come alone.
    assert!(arena.stats().faults < 16 + 1 + 160 / 16 + 1, "{}", arena.stats().faults);
    assert!(record(&arena, &[]).is_empty());
}

#[test]
fn misuse_is_told() {
    let arena = Arena::builder(CHUNK).reserve().unwrap();
    let stopped = arena.stop_recording().unwrap_err();
    assert_eq!((stopped.operation(), stopped.kind()), (Operation::Record, ErrorKind::NotRecording));
    assert_eq!(arena.start_recording(0).unwrap_err().kind(), ErrorKind::ZeroLength);
    assert_eq!(arena.start_recording(usize::MAX).unwrap_err().kind(), ErrorKind::TooLong);
    assert_eq!(arena.start_recording(usize::MAX / 16).unwrap_err().kind(), ErrorKind::Os);
    arena.start_recording(1).unwrap();
    let again = arena.start_recording(1).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyRecording);
    store(&arena, 0, 1);
    store(&arena, 9 * page_size(), 1);
    // It is used up, and still to be stopped.
    assert_eq!(arena.start_recording(1).unwrap_err().kind(), ErrorKind::AlreadyRecording);
    assert_eq!(arena.stop_recording().unwrap().len(), 1);
    assert_eq!(arena.stop_recording().unwrap_err().kind(), ErrorKind::NotRecording);
    // Dropped while it records.
    arena.start_recording(1 << 16).unwrap();
}

/// What was recorded does not fault, and is what it would have been; what was not recorded is absent.
#[test]
fn what_was_replayed_does_not_fault() {
    let len = 8 * CHUNK;
    for template in templates(len) {
        let arena = || Arena::builder(len).template(template.clone());
        let touches = scattered(len / page_size(), 1000, 9);
        let trace = record(&arena().reserve().unwrap(), &touches);
        let want = arena().reserve().unwrap();
        let next = arena().lending(false).window(Window::Pages(1)).reserve().unwrap();
        let replayed = next.replay(&trace).unwrap();
        let charged = touches.len() * page_size();
        assert_eq!((replayed.present_bytes, replayed.skipped_bytes), (charged, 0));
        let stats = next.stats();
        assert_eq!((stats.resident_bytes + stats.lent_bytes, stats.faults), (charged, 0));
        for &(page, _) in touches.iter().step_by(7) {
            let range = page * page_size()..(page + 1) * page_size();
            assert_eq!(bytes(&next, range.clone()), bytes(&want, range), "{template:?}");
        }
        touch(&next, &touches);
        assert_eq!(next.stats().faults, 0, "{template:?}");
        // Once more, onto what is there.
        assert_eq!(next.replay(&trace).unwrap(), replayed);
    }
}

/// Pages of zeroes that were read only are the zero page.
#[test]
fn replaying_reads_of_zeroes_takes_no_memory() {
    let arena = || Arena::builder(8 * CHUNK).lending(false).reserve().unwrap();
    let reads: Vec<_> = (0..2000).map(|page| (page, Access::Read)).collect();
    let trace = record(&arena(), &reads);
    let next = arena();
    next.replay(&trace).unwrap();
    let stats = next.stats();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (0, 2000 * page_size()));
}

#[test]
fn what_does_not_fit_is_skipped() {
    let arena = |len: usize| Arena::builder(len).lending(false).template(numbered_pages());
    let page = page_size();
    let touches = scattered(8 * CHUNK / page, 1000, 11);
    let trace = record(&arena(8 * CHUNK).reserve().unwrap(), &touches);
    let below = |bytes: usize| touches.iter().filter(|it| it.0 * page < bytes).count() * page;
    let check = |builder: ArenaBuilder<'_>, present: usize| {
        let arena = builder.reserve().unwrap();
        let replayed = arena.replay(&trace).unwrap();
        assert_eq!(replayed.present_bytes, present);
        assert_eq!(replayed.skipped_bytes, touches.len() * page - present);
        assert_eq!(arena.stats().resident_bytes, present);
        assert_eq!(arena.stats().faults, 0);
    };
    check(arena(3 * CHUNK), below(3 * CHUNK));
    check(arena(page), below(page));
    check(arena(8 * CHUNK).limit(5 * CHUNK + page), below(5 * CHUNK + page));
    check(arena(8 * CHUNK).limit(0), 0);
    for budget in [1, 77, touches.len() - 1] {
        check(arena(8 * CHUNK).budget(budget * page), budget * page);
    }
    check(arena(16 * CHUNK).budget(touches.len() * page), touches.len() * page);
}

/// A file that was cut short is no signal and no violation: what it lacks is skipped.
#[test]
fn a_file_that_was_cut_short_is_survived() {
    let (len, page) = (4 * CHUNK, page_size());
    let file = file_of(&noise(len, 1));
    let arena = || Arena::builder(len).template(Template::file(&file).unwrap()).reserve().unwrap();
    let touches: Vec<_> = (0..len / page).step_by(3).map(|page| (page, Access::Read)).collect();
    let trace = record(&arena(), &touches);
    let next = arena();
    file.set_len((len / 2) as u64).unwrap();
    let replayed = next.replay(&trace).unwrap();
    let present = touches.iter().filter(|it| it.0 * page < len / 2).count() * page;
    assert_eq!((replayed.present_bytes, next.stats().resident_bytes), (present, present));
}

/// An image need not begin where a page of its file does.
#[test]
fn a_range_of_a_file_is_replayed() {
    let content = noise(3 * CHUNK, 8);
    let file = file_of(&content);
    let range = 1234..content.len() as u64 - 99;
    let template = Template::file_range(&file, range.clone()).unwrap();
    let arena = || Arena::builder(4 * CHUNK).template(template.clone()).reserve().unwrap();
    let touches = scattered(4 * CHUNK / page_size(), 500, 2);
    let trace = record(&arena(), &touches);
    let next = arena();
    next.replay(&trace).unwrap();
    for &(page, _) in &touches {
        let at = page * page_size();
        let want = content[range.start as usize..range.end as usize].get(at).unwrap_or(&0);
        assert_eq!(load(&next, at), *want);
    }
    assert_eq!(next.stats().faults, 0);
}

#[test]
fn whole_chunks_are_replayed_whole() {
    let arena = || Arena::builder(8 * CHUNK).template(numbered_pages()).reserve().unwrap();
    let pages = 4 * CHUNK / page_size();
    let stream: Vec<_> = (0..pages).rev().map(|page| (page, Access::Write)).collect();
    let trace = record(&arena(), &stream);
    let next = arena();
    assert_eq!(next.replay(&trace).unwrap().present_bytes, 4 * CHUNK);
    touch(&next, &stream);
    assert_eq!(next.stats().faults, 0);
}

/// Threads that touch meanwhile see the template, whoever installs a page.
#[test]
fn threads_may_touch_while_it_is_replayed() {
    let arena = || {
        let builder = Arena::builder(16 * CHUNK).window(Window::Pages(1));
        builder.template(numbered_pages()).reserve().unwrap()
    };
    let touches = scattered(16 * CHUNK / page_size(), 4000, 21);
    let trace = record(&arena(), &touches);
    for round in 0..10 {
        let arena = arena();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (arena, mut order) = (&arena, touches.clone());
                scope.spawn(move || {
                    Rng(round * 2 + thread).shuffle(&mut order);
                    for (page, _) in order {
                        let at = page * page_size();
                        let word = bytes(arena, at..at + 8).try_into().unwrap();
                        assert_eq!(u64::from_ne_bytes(word), (page as u64) << 16);
                    }
                });
            }
            assert_eq!(arena.replay(&trace).unwrap().skipped_bytes, 0);
        });
        assert_eq!(arena.stats().resident_bytes, touches.len() * page_size());
    }
}

/// Recording is started and stopped while threads fault: nothing is lost, nothing is read half written.
#[test]
fn recording_may_be_stopped_while_threads_fault() {
    let _watchdog = Watchdog::new("recording", 60);
    let arena = Arena::builder(32 * CHUNK).reserve().unwrap();
    let count = arena.len() / page_size();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (arena, done) = (&arena, &done);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                while !done.load(Ordering::Relaxed) {
                    let at = rng.below(count) * page_size();
                    store(arena, at, 1);
                    if rng.below(64) == 0 {
                        discard(arena, at - at % CHUNK..at - at % CHUNK + CHUNK);
                    }
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(1);
        let mut recorded = 0;
        while Instant::now() < end {
            arena.start_recording(200).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            let trace = arena.stop_recording().unwrap();
            let touched = pages(&trace);
            assert!(touched.iter().all(|(page, _)| *page < count));
            assert_eq!(touched.iter().collect::<HashSet<_>>().len(), touched.len());
            recorded += touched.len();
            assert_eq!(Trace::load(saved(&trace).as_slice()).unwrap(), trace);
        }
        done.store(true, Ordering::Relaxed);
        assert_ne!(recorded, 0);
    });
}

/// A child's recording has ended; its own does not reach the parent's.
#[test]
fn a_forked_child_records_on_its_own() {
    for on_fork in [OnFork::Inherit, OnFork::Wipe] {
        let arena = Arena::builder(4 * CHUNK).on_fork(on_fork).reserve().unwrap();
        arena.start_recording(100).unwrap();
        touch(&arena, &[(5, Access::Write)]);
        fork(|| {
            touch(&arena, &[(600, Access::Write)]);
            assert_eq!(arena.stop_recording().unwrap_err().kind(), ErrorKind::NotRecording);
            let trace = record(&arena, &[(700, Access::Write), (601, Access::Write)]);
            assert_eq!(pages(&trace), [(700, Access::Write), (601, Access::Write)]);
            arena.replay(&trace).unwrap();
            arena.start_recording(9).unwrap();
            drop_copy(&arena);
        });
        touch(&arena, &[(1, Access::Write)]);
        let trace = arena.stop_recording().unwrap();
        assert_eq!(pages(&trace), [(5, Access::Write), (1, Access::Write)]);
    }
}

#[test]
fn children_that_must_not_touch_the_arena_are_told() {
    let arena = Arena::builder(CHUNK).on_fork(OnFork::Forbid).reserve().unwrap();
    let trace = record(&arena, &[(1, Access::Write)]);
    fork(|| {
        assert_eq!(arena.start_recording(1).unwrap_err().kind(), ErrorKind::NotInherited);
        assert_eq!(arena.replay(&trace).unwrap_err().kind(), ErrorKind::NotInherited);
    });
    arena.start_recording(1).unwrap();
    raw_fork(|| {
        for error in [
            arena.start_recording(1).unwrap_err(),
            arena.stop_recording().unwrap_err(),
            arena.replay(&trace).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::ForkedWithoutHooks);
        }
    });
    arena.stop_recording().unwrap();
}

#[test]
fn arrays_are_recorded_by_their_arena() {
    let mut table = SparseArray::<u64>::filled(1 << 30, 9).unwrap();
    table.arena().start_recording(10).unwrap();
    table[1 << 29] = 1;
    let trace = table.arena().stop_recording().unwrap();
    let next = SparseArray::<u64>::filled(1 << 30, 9).unwrap();
    next.arena().replay(&trace).unwrap();
    assert_eq!((next[1 << 29], next.arena().stats().faults), (9, 0));
}

fn saved(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.save(&mut bytes).unwrap();
    bytes
}
