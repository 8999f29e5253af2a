//! What comes of operations that race with faults: each outcome that is promised, and no other.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, ErrorKind, Template, Window, page_size};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Rng, Watchdog, arena_rss, discard, read_into, store};

const CHUNK: usize = 2 << 20;
const WORD: u64 = 0x1122_3344_5566_7788;
/// How long each race is run.
const TIME: Duration = Duration::from_millis(700);

/// The first word of a page, accessed atomically by all.
fn word(arena: &Arena, page: usize) -> &AtomicU64 {
    // SAFETY: within the arena and aligned; every value is valid.
    unsafe { &*arena.as_ptr().add(page * page_size()).cast::<AtomicU64>() }
}

/// Runs `race` over and over in this thread while two others run `beside` over and over.
fn race(beside: impl Fn(&mut Rng) + Sync, mut race: impl FnMut(&mut Rng)) {
    let _watchdog = Watchdog::new("race", 100);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (beside, stop) = (&beside, &stop);
            scope.spawn(move || {
                let mut rng = Rng(thread);
                while !stop.load(Ordering::Relaxed) {
                    beside(&mut rng);
                }
            });
        }
        let (start, mut rng) = (Instant::now(), Rng(77));
        while start.elapsed() < TIME {
            race(&mut rng);
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Pages that somebody drops behind lacuna's back come back for each of the threads that find them
/// missing at the same time.
#[test]
fn touches_race_with_somebody_who_drops_pages() {
    let template = Template::repeat(&WORD).unwrap();
    let builder = Arena::builder(page_size()).template(template);
    let arena = builder.backend(Backend::Userfaultfd).reserve().unwrap();
    let touch = |_: &mut Rng| {
        assert_eq!(word(&arena, 0).load(Ordering::Relaxed), WORD);
    };
    race(touch, |_| {
        // SAFETY: only reads, of the template's words, race with it.
        let dropped =
            unsafe { libc::madvise(arena.as_ptr().cast(), page_size(), libc::MADV_DONTNEED) };
        assert_eq!(dropped, 0);
        // Both of the others run then, and find it at the same moment.
        std::thread::sleep(Duration::from_micros(50));
    });
    assert_eq!(arena.stats().resident_bytes, page_size());
}

fn in_step(arena: &Arena) {
    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, arena_rss(arena), "{stats}");
}

/// A touch finds what was written or the template, whatever takes the page away meanwhile.
#[test]
fn touches_race_with_reset_and_populate() {
    const PAGES: usize = 2048;
    for window in [Window::Pages(1), Window::Adaptive] {
        let template = Template::repeat(&WORD).unwrap();
        let builder = Arena::builder(PAGES * page_size()).template(template).window(window);
        let arena = builder.reserve().unwrap();
        let touch = |rng: &mut Rng| {
            let page = rng.below(PAGES);
            let found = word(&arena, page).load(Ordering::Relaxed);
            assert!(found == WORD || found == page as u64, "page {page}: {found:#x}");
            word(&arena, page).store(page as u64, Ordering::Relaxed);
        };
        race(touch, |rng| match rng.below(3) {
            // SAFETY: all accesses are atomic, and every value is valid.
            0 => unsafe { arena.reset() }.unwrap(),
            _ => {
                let first = rng.below(PAGES);
                arena.populate(first * page_size()..PAGES * page_size()).unwrap();
            }
        });
        in_step(&arena);
        discard(&arena, 0..arena.len());
        assert_eq!(arena_rss(&arena), 0);
    }
}

/// Populating while others discard succeeds: each page was there at some moment.
#[test]
fn populate_races_with_discard() {
    for huge_pages in [true, false] {
        let arena = Arena::builder(4 * CHUNK).huge_pages(huge_pages).reserve().unwrap();
        let take_away = |rng: &mut Rng| {
            let first = rng.below(4 * CHUNK / page_size()) * page_size();
            discard(&arena, first..4 * CHUNK);
        };
        race(take_away, |_| arena.populate(0..4 * CHUNK).unwrap());
        in_step(&arena);
        arena.populate(0..4 * CHUNK).unwrap();
        assert_eq!(arena_rss(&arena), 4 * CHUNK);
    }
}

/// Nothing that begins after a lower limit was set passes it.
#[test]
fn populate_races_with_a_lower_limit() {
    let arena = Arena::builder(8 * CHUNK).reserve().unwrap();
    // A number while the limit is low, another each time; else 0.
    let lowered = AtomicU64::new(0);
    let populate = |rng: &mut Rng| {
        let before = lowered.load(Ordering::Acquire);
        let first = 4 * CHUNK + rng.below(512) * page_size();
        match arena.populate(first..first + page_size()) {
            Ok(()) => assert!(before == 0 || before != lowered.load(Ordering::Acquire)),
            Err(error) => assert_eq!(error.kind(), ErrorKind::LimitExceeded),
        }
    };
    let mut round = 0;
    race(populate, |_| {
        arena.set_limit(4 * CHUNK).unwrap();
        round += 1;
        lowered.store(round, Ordering::Release);
        std::thread::sleep(Duration::from_micros(100));
        lowered.store(0, Ordering::SeqCst);
        arena.set_limit(8 * CHUNK).unwrap();
        std::thread::sleep(Duration::from_micros(100));
        discard(&arena, 4 * CHUNK..5 * CHUNK);
    });
    in_step(&arena);
}

/// A chunk that reaches past the limit is never left lent: the kernel would fill it past the limit.
#[test]
fn lending_races_with_a_lower_limit() {
    let arena = Arena::builder(8 * CHUNK).reserve().unwrap();
    let scatter = |rng: &mut Rng| store(&arena, rng.below(250) * page_size(), 1);
    race(scatter, |rng| {
        arena.set_limit(8 * CHUNK).unwrap();
        discard(&arena, 0..CHUNK);
        if rng.below(2) == 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        arena.set_limit(CHUNK / 2).unwrap();
        let error = read_into(&arena, CHUNK - page_size(), &[1]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "the chunk is lent");
    });
    in_step(&arena);
}
