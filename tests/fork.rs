//! Forked children: their arenas are their own, and work.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ErrorKind, SparseArray, Template, page_size};
use std::io::{Read, Write};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;
use support::fork::fork;
use support::{
    Watchdog, arena_rss, assert_success, bytes, discard, file_of, in_child, load, noise,
    numbered_pages, store,
};

fn templated(budget: usize) -> Arena {
    let template = Template::repeat(&0x77u8).unwrap();
    Arena::builder(1 << 40).template(template).budget(budget).reserve().unwrap()
}

#[test]
fn children_have_templates_contents_budgets_and_counters_of_their_own() {
    assert_success(&in_child(
        "children_have_templates_contents_budgets_and_counters_of_their_own",
        "fork",
        || {
            let budget = 100 * page_size();
            let arena = templated(budget);
            store(&arena, 0, 1);
            fork(|| {
                assert_eq!((load(&arena, 0), load(&arena, 1)), (1, 0x77));
                assert_eq!(load(&arena, 1 << 30), 0x77);
                store(&arena, 0, 2);
                (0..98).for_each(|page| store(&arena, (1 << 35) + page * page_size(), 3));
                assert_eq!(arena.stats().budget_left(), Some(0));
                let refused = arena.populate(0..2 * page_size()).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::BudgetExhausted);
                assert_eq!(arena_rss(&arena), budget);
                // A grandchild, and making and dropping arenas.
                discard(&arena, 0..page_size());
                fork(|| {
                    assert_eq!(load(&arena, 5), 0x77);
                    let own = templated(budget);
                    store(&own, 1 << 33, 5);
                });
            });
            assert_eq!((load(&arena, 0), load(&arena, 1 << 30)), (1, 0x77));
            assert_eq!(arena.stats().resident_bytes, 2 * page_size());
            assert_eq!(arena_rss(&arena), 2 * page_size());
        },
    ));
}

#[test]
fn lent_chunks_and_huge_pages_live_on() {
    assert_success(&in_child("lent_chunks_and_huge_pages_live_on", "fork", || {
        let arena = Arena::builder(1 << 30).reserve().unwrap();
        (0..4).for_each(|index| store(&arena, index * 50 * page_size(), 9));
        assert!(arena.stats().lent_bytes > 0);
        arena.populate(4 << 20..8 << 20).unwrap();
        store(&arena, 5 << 20, 8);
        fork(|| {
            assert_eq!((load(&arena, 0), load(&arena, 5 << 20)), (9, 8));
            (0..512).for_each(|page| store(&arena, page * page_size() + 1, 1));
            (0..512).for_each(|page| assert_eq!(load(&arena, page * page_size() + 1), 1));
            (8 << 20..64 << 20).step_by(page_size()).for_each(|byte| store(&arena, byte, 1));
            // SAFETY: nobody has a reference into the arena.
            unsafe { arena.reset().unwrap() };
            assert_eq!((load(&arena, 0), arena_rss(&arena)), (0, 0));
        });
        assert_eq!((load(&arena, 1), load(&arena, 8 << 20)), (0, 0));
    }));
}

/// What the kernel fills by itself it fills in a child too, without a signal, until it is taken back there.
#[test]
fn lent_chunks_stay_lent() {
    assert_success(&in_child("lent_chunks_stay_lent", "fork", || {
        const CHUNK: usize = 2 << 20;
        let arena = Arena::builder(64 << 20).reserve().unwrap();
        for chunk in [1, 2, 5] {
            (0..8).for_each(|index| store(&arena, chunk * CHUNK + index * 40 * page_size(), 9));
        }
        let before = arena.stats();
        assert!(before.lent_bytes > 2 * CHUNK);
        fork(|| {
            assert_eq!(arena.stats(), before);
            let pages = (2 * CHUNK..3 * CHUNK).step_by(page_size());
            pages.clone().for_each(|page| store(&arena, page + 1, 1));
            assert_eq!(arena.stats().faults, before.faults);
            arena.populate(CHUNK..2 * CHUNK).unwrap();
            assert!(arena.stats().resident_bytes >= CHUNK);
            fork(|| arena.populate(5 * CHUNK..6 * CHUNK).unwrap());
            let stats = arena.measure().unwrap();
            assert_eq!(stats.resident_bytes, arena_rss(&arena));
            // What lies between and after them is noticed, and so are they once they are taken back.
            store(&arena, 4 * CHUNK, 1);
            store(&arena, 7 * CHUNK, 1);
            assert_eq!(arena.stats().faults, before.faults + 2);
            discard(&arena, 0..arena.len());
            assert_eq!((arena.stats().lent_bytes, arena_rss(&arena)), (0, 0));
            store(&arena, 2 * CHUNK, 1);
            assert_eq!(arena.stats().faults, before.faults + 3);
        });
        assert_eq!(arena.stats(), before);
    }));
}

/// Forks while threads fault, discard, and make and drop arenas.
#[test]
fn forks_under_load_copy_nothing_half_way() {
    assert_success(&in_child("forks_under_load_copy_nothing_half_way", "fork", || {
        let _watchdog = Watchdog::new("forks under load", 50);
        let arena = templated(usize::MAX);
        let stop = AtomicBool::new(false);
        let rounds = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (arena, stop, rounds) = (&arena, &stop, &rounds);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let base = thread << 32;
                        (0..200).for_each(|page| store(arena, base + page * page_size(), 1));
                        discard(arena, base..base + 100 * page_size());
                        drop(templated(1 << 20));
                        rounds.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            for _ in 0..200 {
                fork(|| check(&arena));
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert!(rounds.load(Ordering::Relaxed) > 3);
        assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
    }));
}

/// In a child forked under load: the counters agree with the kernel, and everything works.
fn check(arena: &Arena) {
    assert_eq!(arena.stats().resident_bytes, arena_rss(arena));
    for page in 0..200 {
        let byte = load(arena, (1 << 32) + page * page_size());
        assert!(byte == 1 || byte == 0x77, "{byte}");
    }
    store(arena, 9 << 32, 4);
    discard(arena, 0..1 << 33);
    let own = templated(1 << 20);
    assert_eq!(load(&own, 1 << 20), 0x77);
    assert_eq!(arena.stats().resident_bytes, arena_rss(arena));
}

/// Every kind of template, with what its first pages contain.
fn templates() -> Vec<(Template, Vec<u8>)> {
    let len = 6 * page_size() + 100;
    let with_zeroes = |mut content: Vec<u8>| {
        content.resize(8 * page_size(), 0);
        content
    };
    let image = noise(len, 1);
    let file = noise(len, 2);
    let numbers: Vec<u8> = (0..8u64)
        .flat_map(|page| (0..page_size() as u64 / 8).map(move |word| page << 16 | word))
        .flat_map(u64::to_ne_bytes)
        .collect();
    let pattern = [1u8, 2, 3, 4, 5];
    let repeated = pattern.iter().copied().cycle().take(8 * page_size()).collect();
    vec![
        (Template::zero(), with_zeroes(Vec::new())),
        (Template::repeat(&pattern).unwrap(), repeated),
        (Template::bytes(&image).unwrap(), with_zeroes(image)),
        (Template::file(&file_of(&file)).unwrap(), with_zeroes(file)),
        (numbered_pages(), numbers),
    ]
}

#[test]
fn every_kind_of_template_is_whole_in_children_and_their_children() {
    let name = "every_kind_of_template_is_whole_in_children_and_their_children";
    assert_success(&in_child(name, "fork", || {
        for (template, content) in templates() {
            let arena = Arena::builder(1 << 40).template(template).reserve().unwrap();
            let page = |index: usize| index * page_size()..(index + 1) * page_size();
            store(&arena, 0, 99);
            let check = |pages: std::ops::Range<usize>| {
                assert_eq!(load(&arena, 0), 99);
                for index in pages {
                    assert_eq!(bytes(&arena, page(index)), content[page(index)]);
                }
            };
            fork(|| {
                fork(|| check(1..8));
                check(1..4);
                fork(|| check(1..8));
                // A page that was written comes back to the template here as well.
                discard(&arena, page(0));
                assert_eq!(bytes(&arena, page(0)), content[page(0)]);
            });
            check(1..8);
        }
    }));
}

#[test]
fn neither_side_sees_what_the_other_does() {
    assert_success(&in_child("neither_side_sees_what_the_other_does", "fork", || {
        let arena = templated(usize::MAX);
        let mut array = SparseArray::filled(1 << 30, 5u32).unwrap();
        store(&arena, 0, 1);
        array[7] = 6;
        let before = (arena.stats(), arena.populated().collect::<Vec<_>>());
        let (mut go, mut start) = std::io::pipe().unwrap();
        let (mut went, mut done) = std::io::pipe().unwrap();
        let parent = std::thread::scope(|scope| {
            let parent = scope.spawn(|| {
                // The child has touched what it wants to.
                went.read_exact(&mut [0]).unwrap();
                assert_eq!((arena.stats(), arena.populated().collect::<Vec<_>>()), before);
                assert_eq!(arena_rss(&arena), before.0.resident_bytes);
                (1..64).for_each(|chunk| store(&arena, chunk << 21, 3));
                start.write_all(&[0]).unwrap();
            });
            fork(|| {
                assert_eq!((arena.stats(), arena.populated().collect::<Vec<_>>()), before);
                store(&arena, 0, 2);
                (0..64).for_each(|chunk| store(&arena, (1 << 39) + (chunk << 21), 2));
                (array[7], array[1 << 29]) = (8, 8);
                assert_eq!(array.populated().count(), 2);
                array.reset().unwrap();
                assert_eq!((array[7], array[1 << 29]), (5, 5));
                done.write_all(&[0]).unwrap();
                go.read_exact(&mut [0]).unwrap();
                // Whatever the parent does now, this is the child's memory.
                (1..64).for_each(|chunk| assert_eq!(load(&arena, chunk << 21), 0x77));
                assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
            });
            parent.join()
        });
        parent.unwrap();
        assert_eq!(
            (load(&arena, 0), load(&arena, 1 << 39), array[7], array[1 << 29]),
            (1, 0x77, 6, 5)
        );
        assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
    }));
}

/// What is open in this process for arenas: a userfaultfd, or its own memory without one.
fn descriptors() -> usize {
    let memory = format!("/proc/{}/mem", std::process::id());
    let links = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
    let targets = targets.map(|target| target.to_string_lossy().into_owned());
    targets.filter(|target| target.contains("[userfaultfd]") || *target == memory).count()
}

#[test]
fn children_have_one_descriptor_their_own() {
    assert_success(&in_child("children_have_one_descriptor_their_own", "fork", || {
        let arena = templated(usize::MAX);
        assert_eq!(descriptors(), 1);
        fork(|| {
            assert_eq!(descriptors(), 1);
            fork(|| assert_eq!((descriptors(), load(&arena, 9)), (1, 0x77)));
            drop(arena);
            drop(templated(usize::MAX));
            assert_eq!(descriptors(), 1);
        });
        assert_eq!(descriptors(), 1);
    }));
}

/// Each time in a process that has no arena yet: one thread makes the first while another forks.
#[test]
fn forks_during_the_very_first_arena_hang_nowhere() {
    let make = || {
        let template = Template::repeat(&0x77u8).unwrap();
        Arena::builder(1 << 30).template(template).reserve()
    };
    assert_success(&in_child("forks_during_the_very_first_arena_hang_nowhere", "fork", || {
        for round in 0..200 {
            fork(|| {
                let go = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        while !go.load(Ordering::Relaxed) {
                            std::hint::spin_loop();
                        }
                        assert_eq!(load(&make().unwrap(), 5), 0x77);
                    });
                    go.store(true, Ordering::Relaxed);
                    (0..round * 100).for_each(|_| std::hint::spin_loop());
                    fork(|| match make() {
                        Ok(arena) => assert_eq!(load(&arena, 5), 0x77),
                        // The fork began before the hooks were known, and ended after.
                        Err(error) => assert_eq!(error.kind(), ErrorKind::ForkedWithoutHooks),
                    });
                    assert_eq!(load(&make().unwrap(), 6), 0x77);
                });
            });
        }
    }));
}

/// A handler that touches an arena, on top of a reset, while another thread forks: the fork waits for
/// the reset to leave its chunk, so the handler must not find it inside.
#[test]
fn handlers_on_top_of_a_reset_do_not_keep_a_fork_waiting() {
    let name = "handlers_on_top_of_a_reset_do_not_keep_a_fork_waiting";
    assert_success(&in_child(name, "fork", || {
        let builder = Arena::builder(1 << 30).keep_resident(1 << 30);
        let kept = builder.template(Template::repeat(&1u8).unwrap()).reserve().unwrap();
        (0..512).for_each(|chunk| store(&kept, chunk << 21, 2));
        // SAFETY: nobody else uses the arena.
        fork_while_signals_interrupt(|| unsafe { kept.reset() }.unwrap());
        assert_eq!(load(&kept, 0), 1);
    }));
}

/// The same on top of an allocation: the fork waits for the heap's lock, which the thread beneath the
/// handler holds.
#[test]
fn handlers_on_top_of_an_allocation_do_not_keep_a_fork_waiting() {
    let name = "handlers_on_top_of_an_allocation_do_not_keep_a_fork_waiting";
    assert_success(&in_child(name, "fork", || {
        let heap = support::heap::heap(1 << 30, None);
        let layout = support::heap::layout(300 << 10);
        fork_while_signals_interrupt(|| {
            let blocks = [(); 16].map(|()| support::heap::alloc(&heap, layout));
            blocks.iter().for_each(|block| support::heap::free(&heap, *block, layout));
            heap.purge();
        });
    }));
}

/// Runs `work` over and over while signals whose handler touches an arena interrupt it, and another
/// thread forks.
fn fork_while_signals_interrupt(work: impl Fn()) {
    let _watchdog = Watchdog::new("signals and forks", 40);
    let touched: &Arena = Box::leak(Box::new(templated(usize::MAX)));
    TOUCHED.store(ptr::from_ref(touched).cast_mut(), Ordering::Release);
    // SAFETY: the handler only touches an arena that is never dropped.
    unsafe { libc::signal(libc::SIGUSR1, touch_some as *const () as libc::sighandler_t) };
    // SAFETY: it has no preconditions.
    let target = unsafe { libc::pthread_self() };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            (0..300).for_each(|_| fork(|| ()));
            stop.store(true, Ordering::Relaxed);
        });
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                discard(touched, 0..64 * page_size());
                // SAFETY: the thread waits for this one to end.
                unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        while !stop.load(Ordering::Relaxed) {
            work();
        }
    });
}

/// What the handler touches.
static TOUCHED: AtomicPtr<Arena> = AtomicPtr::new(std::ptr::null_mut());

extern "C" fn touch_some(_signal: libc::c_int) {
    // SAFETY: set before the handler was installed, to an arena that stays.
    let base = unsafe { (*TOUCHED.load(Ordering::Acquire)).as_ptr() };
    for page in 0..64 {
        // SAFETY: within the arena.
        unsafe { base.add(page * page_size()).write_volatile(3) };
    }
}
