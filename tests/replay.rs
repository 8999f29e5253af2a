//! What a replay makes of pages that were only read, and what it goes around.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Access, Arena, ArenaBuilder, Backend, Template, Trace, page_size};
use support::{Rng, bytes, file_of, load, noise, store};

const CHUNK: usize = 2 << 20;

/// Both backends: what userfaultfd installs by other calls is the other's too.
fn backends() -> [Option<Backend>; 2] {
    [None, Some(Backend::Mprotect)]
}

fn builder(len: usize, backend: Option<Backend>) -> ArenaBuilder<'static> {
    let builder = Arena::builder(len).lending(false);
    match backend {
        Some(backend) => builder.backend(backend),
        None => builder,
    }
}

fn record(arena: &Arena, touches: &[(usize, Access)]) -> Trace {
    arena.start_recording(touches.len()).unwrap();
    touch(arena, touches);
    arena.stop_recording().unwrap()
}

fn touch(arena: &Arena, touches: &[(usize, Access)]) {
    for &(page, access) in touches {
        match access {
            Access::Write => store(arena, page * page_size() + 7, 1),
            Access::Read => drop(load(arena, page * page_size())),
        }
    }
}

fn reads(pages: impl Iterator<Item = usize>) -> Vec<(usize, Access)> {
    pages.map(|page| (page, Access::Read)).collect()
}

/// Replays what was recorded, and asserts that there is as much memory as there was, that touching it does
/// not fault, and that it holds what it would have held.
#[track_caller]
fn assert_same(arena: impl Fn() -> Arena, touches: &[(usize, Access)]) -> Arena {
    let (last, next) = (arena(), arena());
    let trace = record(&last, touches);
    let replayed = next.replay(&trace).unwrap();
    let charged = touches.len() * page_size();
    assert_eq!((replayed.present_bytes, replayed.skipped_bytes), (charged, 0));
    let memory = |arena: &Arena| (arena.stats().resident_bytes, arena.stats().lent_bytes);
    assert_eq!(memory(&next), memory(&last));
    let untouched = arena();
    for &(page, _) in touches.iter().step_by(5) {
        let range = page * page_size()..(page + 1) * page_size();
        assert_eq!(bytes(&next, range.clone()), bytes(&untouched, range), "page {page}");
    }
    touch(&next, touches);
    assert_eq!(next.stats().faults, 0);
    next
}

/// They were copied, so that an arena that shared its image no longer did.
#[test]
fn pages_of_a_shared_image_that_were_read_stay_shared() {
    let page = page_size();
    for backend in backends() {
        // Its end in the midst of a page, where a page ends, and where a chunk does; with holes.
        for len in [2 * CHUNK + 5 * page + 100, 2 * CHUNK + 5 * page, 2 * CHUNK] {
            let mut image = noise(len, 1);
            image[30 * page..60 * page].fill(0);
            let template = Template::bytes(&image).unwrap().shared().unwrap();
            let arena = || {
                let arena = builder(4 * CHUNK, backend).template(template.clone());
                arena.reserve().unwrap()
            };
            let end = 2 * CHUNK / page;
            let read = assert_same(arena, &reads(0..100));
            assert_eq!(read.stats().resident_bytes, 0);
            // Across the image's end: its last page may be memory, the zeroes after it are not.
            let read = assert_same(arena, &reads(end - 20..end + 20));
            let tail = if len % page == 0 { 0 } else { page };
            assert_eq!(read.stats().resident_bytes, tail);
        }
    }
}

/// Reads and writes side by side, of images that a run may end in anywhere. (Without userfaultfd, what is
/// written of a shared image is filled by the kernel.)
#[test]
fn reads_and_writes_of_any_image() {
    let page = page_size();
    let image = noise(CHUNK + 9 * page + 1, 2);
    let saved = saved(&Template::zero(), 1300);
    let repeated = saved_of_value();
    let templates = [
        Template::bytes(&image).unwrap(),
        Template::bytes(&image).unwrap().shared().unwrap(),
        Template::file(&file_of(&image)).unwrap(),
        Template::image(&saved).unwrap(),
        Template::image(&repeated).unwrap(),
        Template::zero(),
    ];
    for template in templates {
        let arena = || builder(1300 * page, None).template(template.clone()).reserve().unwrap();
        for seed in 0..4 {
            let mut rng = Rng(seed);
            let mut pages: Vec<_> = (0..1300).filter(|_| rng.below(3) > 0).collect();
            rng.shuffle(&mut pages);
            let access = |page| match rng.below(3) {
                0 => (page, Access::Write),
                _ => (page, Access::Read),
            };
            assert_same(arena, &pages.into_iter().map(access).collect::<Vec<_>>());
        }
    }
}

/// An image of an arena of so many pages, with a page here and there and a few streams.
fn saved(template: &Template, pages: usize) -> std::fs::File {
    let file = file_of(b"");
    let arena = Arena::builder(pages * page_size()).template(template.clone()).reserve().unwrap();
    for page in (0..pages).filter(|page| page % 17 == 0 || (300..400).contains(page)) {
        store(&arena, page * page_size(), 5);
    }
    arena.save(&file).unwrap();
    // Some pages are in their second places.
    for page in (310..350).chain([17, 34]) {
        store(&arena, page * page_size(), 6);
    }
    arena.save(&file).unwrap();
    file
}

fn saved_of_value() -> std::fs::File {
    saved(&Template::repeat(&3u8).unwrap(), 1300)
}

/// They became memory.
#[test]
fn holes_of_an_image_that_were_read_take_no_memory() {
    let file = file_of(b"");
    let len = 4 * CHUNK;
    let arena = Arena::builder(len).reserve().unwrap();
    for page in [300, 301, 900] {
        store(&arena, page * page_size(), 1);
    }
    arena.save(&file).unwrap();
    for backend in backends() {
        let arena = || {
            let template = Template::image(&file).unwrap();
            builder(len, backend).template(template).reserve().unwrap()
        };
        let every = |from: usize, step| reads((from..len / page_size()).step_by(step));
        // Each by itself, without the pages that there are, and all.
        assert_eq!(assert_same(arena, &every(1, 3)).stats().resident_bytes, page_size());
        assert_eq!(assert_same(arena, &every(302, 599)).stats().resident_bytes, 0);
        let all = assert_same(arena, &every(0, 1));
        assert_eq!(all.stats().resident_bytes, 3 * page_size());
    }
}

/// One such page made it skip all that was merged with it.
#[test]
fn only_what_is_poisoned_is_skipped() {
    for backend in backends() {
        let page = page_size();
        let arena = |access: Access| {
            let last = builder(4 * CHUNK, backend).reserve().unwrap();
            let touches: Vec<_> = (0..1000).map(|page| (page, access)).collect();
            let trace = record(&last, &touches);
            let next = builder(4 * CHUNK, backend).reserve().unwrap();
            for pages in [0..1, 50..51, 511..513, 998..1100] {
                // SAFETY: nobody uses the arena yet.
                unsafe { next.poison(pages.start * page..pages.end * page) }.unwrap();
            }
            (trace, next)
        };
        for access in [Access::Read, Access::Write] {
            let (trace, next) = arena(access);
            let replayed = next.replay(&trace).unwrap();
            let poisoned = 1 + 1 + 2 + 2;
            assert_eq!(replayed.skipped_bytes, poisoned * page);
            assert_eq!(replayed.present_bytes, (1000 - poisoned) * page);
            let stats = next.stats();
            assert_eq!(stats.resident_bytes + stats.lent_bytes, replayed.present_bytes);
            let there: Vec<_> =
                next.populated().map(|run| run.start / page..run.end / page).collect();
            assert_eq!(there, [1..50, 51..511, 513..998]);
        }
    }
}
