//! Giving memory back, making it present ahead, and coming back to an image; and two threads beside
//! one.

mod common;

use common::memory::{Mapping, memfd, warm};
use common::{Contestant, GIB, MIB, Sample, Session, page};
use lacuna::{Arena, Template};
use std::time::{Duration, Instant};

/// Bytes of the image, and how many of its pages each round writes.
const IMAGE: usize = 16 * MIB;
const WRITTEN: usize = 64;

fn main() {
    Session::run(|session| {
        discard(session);
        populate(session);
        reset(session);
        threads(session);
    });
}

fn arena(len: usize) -> Arena {
    Arena::builder(len).reserve().expect("the arena can be reserved")
}

/// Writes to each page.
fn touch(base: *mut u8, len: usize) {
    for offset in (0..len).step_by(page()) {
        // SAFETY: the callers' memory is so long, and theirs alone.
        unsafe { base.add(offset).write_volatile(1) };
    }
}

fn discard(session: &mut Session) {
    let len = session.mode().pick(GIB, 64 * MIB, 4 * MIB);
    let pages = len / page();
    let plain = move |huge: bool| {
        let memory = if huge { Mapping::huge_pages(len) } else { Mapping::small_pages(len) };
        touch(memory.base(), len);
        let start = Instant::now();
        memory.advise(libc::MADV_DONTNEED);
        Sample::timed(start.elapsed(), pages)
    };
    let ours = move |huge: bool| {
        let builder = Arena::builder(len).huge_pages(huge);
        let arena = builder.reserve().expect("the arena can be reserved");
        touch(arena.as_ptr(), len);
        let start = Instant::now();
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.reset() }.expect("nothing is locked");
        let time = start.elapsed();
        assert_eq!(arena.stats().resident_bytes, 0);
        Sample::timed(time, pages)
    };
    session.race(
        "discard of everything present",
        "page",
        vec![
            Contestant::new("MADV_DONTNEED, 4 KiB pages", move || plain(false)),
            Contestant::new("MADV_DONTNEED, huge pages", move || plain(true)),
            Contestant::new("lacuna, huge_pages(false)", move || ours(false)),
            Contestant::new("lacuna", move || ours(true)),
        ],
    );
}

fn populate(session: &mut Session) {
    let len = session.mode().pick(GIB, 64 * MIB, 4 * MIB);
    let pages = len / page();
    let plain = move |memory: Mapping| {
        let start = Instant::now();
        memory.advise(libc::MADV_POPULATE_WRITE);
        Sample::timed(start.elapsed(), pages)
    };
    session.race(
        "populate",
        "page",
        vec![
            Contestant::new("MADV_POPULATE_WRITE, 4 KiB pages", move || {
                warm(len + len / 4);
                plain(Mapping::small_pages(len))
            }),
            Contestant::new("MADV_POPULATE_WRITE, huge pages", move || {
                warm(len + len / 4);
                plain(Mapping::huge_pages(len))
            }),
            Contestant::new("lacuna", move || {
                warm(len + len / 4);
                let arena = arena(len);
                let start = Instant::now();
                arena.populate(0..len).expect("there is memory");
                let time = start.elapsed();
                assert_eq!((arena.stats().faults, arena.stats().resident_bytes), (0, len));
                Sample::timed(time, pages)
            }),
        ],
    );
}

/// The pages that each round writes, spread over the image.
fn write_some(base: *mut u8) {
    for index in 0..WRITTEN {
        // SAFETY: the image is so long, and the caller's alone.
        unsafe { base.add(index * (IMAGE / WRITTEN)).write_volatile(2) };
    }
}

fn reset(session: &mut Session) {
    let rounds = session.mode().pick(200, 50, 2);
    let image = vec![7u8; IMAGE];
    let file = memfd(&image);
    let mapping = Mapping::private(&file);
    let plain = move || {
        let start = Instant::now();
        for _ in 0..rounds {
            mapping.advise(libc::MADV_DONTNEED);
            write_some(mapping.base());
        }
        Sample::timed(start.elapsed(), rounds)
    };
    let template = Template::bytes(&image).expect("there is memory");
    let arena = |keep: usize| {
        let builder = Arena::builder(IMAGE).template(template.clone()).keep_resident(keep);
        builder.reserve().expect("it can be reserved")
    };
    let ours = |arena: Arena| {
        move || {
            let start = Instant::now();
            for _ in 0..rounds {
                // SAFETY: nobody has a reference into the arena.
                unsafe { arena.reset() }.expect("nothing is locked");
                write_some(arena.as_ptr());
            }
            let time = start.elapsed();
            assert_eq!(arena.stats().resident_bytes, WRITTEN * page());
            Sample::timed(time, rounds)
        }
    };
    session.race(
        "reset of 64 written pages of 16 MiB, and writing them again",
        "round",
        vec![
            Contestant::new("memfd mapped privately, MADV_DONTNEED", plain),
            Contestant::new("lacuna", ours(arena(0))),
            Contestant::new("lacuna, keep_resident(1 MiB)", ours(arena(MIB))),
        ],
    );
}

/// Sequential first writes, by one thread and by two that have half each.
fn threads(session: &mut Session) {
    let len = session.mode().pick(GIB, 64 * MIB, 4 * MIB);
    let plain = move |threads: usize| {
        warm(len + len / 4);
        let memory = Mapping::huge_pages(len);
        Sample::timed(touch_by(threads, memory.base(), len), len / page())
    };
    let ours = move |threads: usize| {
        warm(len + len / 4);
        let arena = arena(len);
        let time = touch_by(threads, arena.as_ptr(), len);
        assert_eq!(arena.stats().resident_bytes, len);
        Sample::timed(time, len / page())
    };
    session.race(
        "sequential first write by threads, each a part",
        "page",
        vec![
            Contestant::new("lacuna, 1 thread", move || ours(1)),
            Contestant::new("lacuna, 2 threads", move || ours(2)),
            Contestant::new("mmap, MADV_HUGEPAGE, 1 thread", move || plain(1)),
            Contestant::new("mmap, MADV_HUGEPAGE, 2 threads", move || plain(2)),
        ],
    );
}

/// Has each of `threads` threads write to the pages of its part, and tells how long that took.
fn touch_by(threads: usize, base: *mut u8, len: usize) -> Duration {
    let part = len / threads;
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let base = base.expose_provenance() + thread * part;
            scope.spawn(move || touch(std::ptr::with_exposed_provenance_mut(base), part));
        }
    });
    start.elapsed()
}
