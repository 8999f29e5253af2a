//! Checkpoints beside what else there is: other threads, forks, swap, limits, moves and lending.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ErrorKind, OnFork, Template, Tracking, Window};
use std::collections::BTreeSet;
use support::tracked::{assert_measured, both, builder, rollback, written};
use support::{Rng, Watchdog, bytes, discard, load, page, read_into, store};

const CHUNK: usize = 2 << 20;

#[test]
fn a_forked_child_has_none_and_makes_its_own() {
    both(|tracking| {
        for on_fork in [OnFork::Inherit, OnFork::Wipe] {
            let template = Template::repeat(&3u8).unwrap();
            let builder = builder(4 * CHUNK, tracking).template(template).on_fork(on_fork);
            let arena = builder.reserve().unwrap();
            (0..600).for_each(|at| store(&arena, at * page(), 7));
            arena.checkpoint().unwrap();
            store(&arena, page(), 8);
            support::fork::fork(|| {
                let inherits = on_fork == OnFork::Inherit;
                assert_eq!(arena.written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
                assert_eq!(arena.stats().checkpoint_bytes, 0);
                assert_eq!(load(&arena, page()), if inherits { 8 } else { 3 });
                store(&arena, 2 * page(), 9);
                store(&arena, 900 * page(), 9);
                assert_eq!(load(&arena, 900 * page() + 1), 3);
                arena.checkpoint().unwrap();
                store(&arena, 2 * page(), 10);
                store(&arena, 901 * page(), 10);
                assert_eq!(written(&arena), [2, 901]);
                rollback(&arena);
                assert_eq!((load(&arena, 2 * page()), load(&arena, 901 * page())), (9, 3));
                let mut grandchild = 0;
                support::fork::fork(|| {
                    grandchild += 1;
                    assert_eq!(arena.written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
                    arena.checkpoint().unwrap();
                    store(&arena, 2 * page(), 11);
                    assert_eq!(written(&arena), [2]);
                });
                assert_measured(&arena);
            });
            store(&arena, 2 * page(), 12);
            assert_eq!(written(&arena), [1, 2]);
            rollback(&arena);
            assert_eq!((load(&arena, page()), load(&arena, 2 * page())), (7, 7));
        }
    });
}

/// Another thread in the midst of a checkpoint does not keep its copy locked.
#[test]
fn a_fork_beside_checkpoints_does_not_hang() {
    let _watchdog = Watchdog::new("a_fork_beside_checkpoints_does_not_hang", 100);
    both(|tracking| {
        let arena = builder(4 * CHUNK, tracking).reserve().unwrap();
        arena.populate(0..2 * CHUNK).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    arena.checkpoint().unwrap();
                    arena.written().unwrap();
                    arena.forget_checkpoint();
                }
            });
            for _ in 0..50 {
                support::fork::fork(|| {
                    store(&arena, 5 * page(), 1);
                    arena.checkpoint().unwrap();
                    store(&arena, 5 * page(), 2);
                    assert_eq!(written(&arena), [5]);
                    rollback(&arena);
                    assert_eq!(load(&arena, 5 * page()), 1);
                });
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

/// Threads write while others ask: nothing is lost, and nothing is made up.
#[test]
fn writers_are_not_missed_while_it_is_asked() {
    let _watchdog = Watchdog::new("writers_are_not_missed_while_it_is_asked", 100);
    both(|tracking| {
        let arena = builder(16 * CHUNK, tracking).reserve().unwrap();
        arena.populate(0..8 * CHUNK).unwrap();
        let pages = arena.len() / page();
        for round in 0..4 {
            arena.checkpoint().unwrap();
            let write = |thread: usize| {
                let mut rng = Rng((round * 2 + thread) as u64);
                let places: Vec<usize> = (0..800).map(|_| rng.below(pages)).collect();
                // The two share some pages.
                places.iter().for_each(|at| store(&arena, at * page() + thread * 64, 1));
                (0..100).for_each(|at| store(&arena, at * 7 * page() + thread, 1));
                places
            };
            let mut model: Vec<usize> = std::thread::scope(|scope| {
                let writers = [0, 1].map(|thread| scope.spawn(move || write(thread)));
                let mut seen = 0;
                while !writers.iter().all(|it| it.is_finished()) {
                    let now = written(&arena).len();
                    assert!(now >= seen);
                    seen = now;
                }
                writers.into_iter().flat_map(|it| it.join().unwrap()).collect()
            });
            model.extend((0..100).map(|at| at * 7));
            model.sort_unstable();
            model.dedup();
            let now = written(&arena);
            let more = now.iter().filter(|it| model.binary_search(it).is_err());
            assert_eq!(more.collect::<Vec<_>>(), [&0usize; 0], "{tracking:?} {round}");
            let less = model.iter().filter(|it| now.binary_search(it).is_err());
            assert_eq!(less.collect::<Vec<_>>(), [&0usize; 0], "{tracking:?} {round}");
            rollback(&arena);
            let is_zero = |at: &usize| {
                bytes(&arena, at * page()..(at + 1) * page()).iter().all(|it| *it == 0)
            };
            assert!(model.iter().step_by(50).all(is_zero));
            assert_measured(&arena);
        }
    });
}

/// Writers that go on while checkpoints begin, are renewed and end lose nothing.
#[test]
fn writers_go_on_beside_checkpoints() {
    let _watchdog = Watchdog::new("writers_go_on_beside_checkpoints", 100);
    both(|tracking| {
        let template = Template::repeat(&5u8).unwrap();
        let arena = builder(8 * CHUNK, tracking).template(template).reserve().unwrap();
        std::thread::scope(|scope| {
            let writers = [0usize, 1].map(|thread| {
                let arena = &arena;
                scope.spawn(move || {
                    let mut rng = Rng(thread as u64);
                    for round in 0..6000 {
                        let at = rng.below(arena.len() / 2 / 64) * 128 + thread * 64;
                        store(arena, at, round as u8);
                        assert_eq!(load(arena, at), round as u8);
                        assert_eq!(load(arena, at / page() * page() + 1), 5);
                    }
                })
            });
            while !writers.iter().all(|it| it.is_finished()) {
                arena.checkpoint().unwrap();
                arena.written().unwrap();
                arena.checkpoint().unwrap();
                arena.forget_checkpoint();
            }
        });
        assert_measured(&arena);
    });
}

#[test]
fn pages_in_swap_are_not_missed() {
    let Some(_swap) = Swap::new() else { return };
    both(|tracking| {
        let arena = builder(8 * CHUNK, tracking).huge_pages(false).reserve().unwrap();
        let pages = 4 * CHUNK / page();
        (0..pages).for_each(|at| store(&arena, at * page(), at as u8));
        arena.checkpoint().unwrap();
        (0..pages).step_by(3).for_each(|at| store(&arena, at * page(), 0xff));
        page_out(&arena);
        let swapped = support::smaps_of(arena.as_ptr().addr(), arena.len(), &["Swap:"]) << 10;
        if swapped < 2 * CHUNK {
            eprintln!("NOT RUN: {tracking:?}: the kernel put {swapped} bytes in swap only");
            return;
        }
        let model: Vec<usize> = (0..pages).step_by(3).collect();
        assert!(written(&arena) == model, "{tracking:?}: {} pages", written(&arena).len());
        assert_measured(&arena);
        // Written while they are there.
        (1..pages).step_by(90).for_each(|at| store(&arena, at * page(), 0xfe));
        let more = (1..pages).step_by(90).filter(|at| at % 3 != 0).count();
        assert_eq!(written(&arena).len(), model.len() + more);
        page_out(&arena);
        rollback(&arena);
        (0..pages).for_each(|at| assert_eq!(load(&arena, at * page()), at as u8));
        assert_eq!(written(&arena), []);
        page_out(&arena);
        arena.checkpoint().unwrap();
        assert_measured(&arena);
    });
}

fn page_out(arena: &Arena) {
    // SAFETY: paging out changes no content.
    let result = unsafe { libc::madvise(arena.as_ptr().cast(), arena.len(), libc::MADV_PAGEOUT) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// A swap file, for as long as it lives.
struct Swap(std::path::PathBuf);

impl Swap {
    /// None, said aloud, where there is none to be had.
    fn new() -> Option<Self> {
        let path = std::env::temp_dir().join(format!("lacuna-swap-{}", std::process::id()));
        let swap = Self(path);
        match swap.start() {
            Ok(()) => Some(swap),
            Err(reason) => {
                eprintln!("NOT RUN: no swap: {reason}");
                None
            }
        }
    }

    fn start(&self) -> Result<(), String> {
        use std::os::unix::fs::OpenOptionsExt;
        // SAFETY: without preconditions.
        if unsafe { libc::geteuid() } != 0 {
            return Err("it takes root".to_owned());
        }
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&self.0);
        std::io::Write::write_all(&mut file.map_err(|it| it.to_string())?, &vec![0; 64 << 20])
            .map_err(|it| it.to_string())?;
        for program in ["mkswap", "swapon"] {
            let output = std::process::Command::new(program).arg(&self.0).output();
            let output = output.map_err(|error| format!("{program}: {error}"))?;
            if !output.status.success() {
                return Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
        Ok(())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = std::process::Command::new("swapoff").arg(&self.0).output();
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A page that is not reported holds what the checkpoint has, also where it was written while that was made.
#[test]
fn a_checkpoint_beside_writers_agrees_with_what_is_reported() {
    let _watchdog = Watchdog::new("a_checkpoint_beside_writers", 100);
    both(|tracking| {
        let arena = builder(2 * CHUNK, tracking).huge_pages(false).reserve().unwrap();
        arena.populate(0..arena.len()).unwrap();
        let pages = arena.len() / page();
        arena.checkpoint().unwrap();
        for round in 0..40u64 {
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    let mut rng = Rng(round);
                    for _ in 0..4000 {
                        store(&arena, rng.below(pages) * page(), rng.next() as u8);
                    }
                });
                while !writer.is_finished() {
                    arena.checkpoint().unwrap();
                }
            });
            let reported: BTreeSet<usize> = written(&arena).into_iter().collect();
            let before: Vec<u8> = (0..pages).map(|at| load(&arena, at * page())).collect();
            (0..pages).for_each(|at| store(&arena, at * page() + 64, 1));
            rollback(&arena);
            for at in (0..pages).filter(|at| !reported.contains(at)) {
                assert_eq!(load(&arena, at * page()), before[at], "{tracking:?} {round} {at}");
            }
        }
    });
}

/// A lower limit leaves pages that are present as they are, also those that a checkpoint has protected.
#[test]
fn present_pages_past_the_limit_can_be_written() {
    both(|tracking| {
        let arena = builder(32 * CHUNK, tracking).reserve().unwrap();
        store(&arena, 10 * page(), 1);
        arena.checkpoint().unwrap();
        arena.set_limit(5 * page()).unwrap();
        store(&arena, 10 * page(), 2);
        assert_eq!(written(&arena), [10]);
        rollback(&arena);
        assert_eq!(load(&arena, 10 * page()), 1);
        store(&arena, 10 * page(), 3);
        rollback(&arena);
        assert_eq!(load(&arena, 10 * page()), 1);
    });
}

/// Coming back writes to pages past the limit itself.
#[test]
fn coming_back_reaches_past_the_limit() {
    both(|tracking| {
        let window = Window::Pages(16);
        let arena = builder(32 * CHUNK, tracking).window(window).reserve().unwrap();
        (0..16).for_each(|at| store(&arena, at * page(), 1));
        arena.checkpoint().unwrap();
        (0..16).for_each(|at| store(&arena, at * page(), 2));
        discard(&arena, 0..16 * page());
        load(&arena, 10 * page());
        arena.set_limit(5 * page()).unwrap();
        rollback(&arena);
        (0..16).for_each(|at| assert_eq!(load(&arena, at * page()), 1));
    });
}

/// Chunks that are lent and taken back are one mapping again, also after a checkpoint.
#[test]
fn chunks_that_were_lent_merge_after_a_checkpoint() {
    both(|tracking| {
        let arena = builder(256 * CHUNK, tracking).reserve().unwrap();
        arena.checkpoint().unwrap();
        arena.forget_checkpoint();
        let mappings = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            arena_mappings(&arena, &maps)
        };
        let before = mappings();
        for chunk in (0..256).step_by(4) {
            for at in [3, 40, 90] {
                store(&arena, chunk * CHUNK + at * page(), 1);
            }
        }
        assert!(arena.stats().lent_bytes > 0 && mappings() > before);
        discard(&arena, 0..arena.len());
        assert_eq!(mappings(), before);
    });
}

/// The mappings that an arena is made of.
fn arena_mappings(arena: &Arena, smaps: &str) -> usize {
    let start = arena.as_ptr().addr();
    let inside = |line: &&str| {
        let address = line.split('-').next().and_then(|it| usize::from_str_radix(it, 16).ok());
        line.contains(" 00:00 ")
            && address.is_some_and(|it| it >= start && it < start + arena.len())
    };
    smaps.lines().filter(inside).count()
}

/// What is moved is moved in huge pages, however the target is tracked later.
#[test]
fn huge_pages_move_whole_to_arenas_that_are_tracked_by_signals() {
    both(|tracking| {
        let arena = || builder(32 * CHUNK, tracking).reserve().unwrap();
        let (from, to) = (arena(), arena());
        from.populate(0..4 * CHUNK).unwrap();
        let before = huge_bytes(&from);
        // SAFETY: nobody has a reference into the arenas.
        unsafe { from.move_pages(0..4 * CHUNK, &to, 0) }.unwrap();
        assert_eq!(huge_bytes(&to), before);
    });
}

/// Bytes of an arena that are in huge pages.
fn huge_bytes(arena: &Arena) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = arena.as_ptr().addr();
    let (mut inside, mut sum) = (false, 0);
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((from, _)) = first.split_once('-')
            && let Ok(from) = usize::from_str_radix(from, 16)
        {
            inside = from >= start && from < start + arena.len();
        } else if inside && first == "AnonHugePages:" {
            sum += line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10;
        }
    }
    sum
}

/// Once the checkpoint is forgotten, nothing is protected, whatever other threads touched meanwhile.
#[test]
fn nothing_stays_protected_beside_lending() {
    let _watchdog = Watchdog::new("forgetting checkpoints", 120);
    let arena = builder(64 * CHUNK, Tracking::Signal).reserve().unwrap();
    for round in 0..200 {
        (0..8).for_each(|at| store(&arena, 40 * CHUNK + at * page(), 1));
        arena.checkpoint().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for at in 0..40 {
                    store(&arena, at * CHUNK + (round % 7) * page(), 1);
                    store(&arena, at * CHUNK + (100 + round % 9) * page(), 1);
                }
            });
            arena.forget_checkpoint();
        });
        let read = read_into(&arena, 40 * CHUNK, &[7; 64]);
        assert_eq!(read.ok(), Some(64), "round {round}");
        discard(&arena, 0..arena.len());
    }
}

/// A page is never poisoned and present, whoever makes checkpoints meanwhile.
#[test]
fn poisoning_beside_checkpoints_poisons_or_is_refused() {
    let arena = builder(CHUNK, Tracking::Kernel).reserve().unwrap();
    for _ in 0..300 {
        (0..8).for_each(|at| store(&arena, at * page(), 1));
        let poisoned = std::thread::scope(|scope| {
            // SAFETY: nobody touches the page meanwhile.
            let poison = scope.spawn(|| unsafe { arena.poison(0..page()) });
            arena.checkpoint().unwrap();
            poison.join().unwrap().is_ok()
        });
        rollback(&arena);
        let present = arena.populated().any(|run| run.start == 0);
        assert_eq!(present, !poisoned);
        arena.forget_checkpoint();
        arena.unpoison(0..page()).unwrap();
        discard(&arena, 0..CHUNK);
    }
}
