//! Arenas as their users see them: what untouched pages contain, and what touching, populating and
//! discarding does.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ErrorKind, Operation, Template, Window};
use std::ops::Range;
use support::{
    Rng, WINDOWS, arena_rss, bytes, discard, file_of, load, noise, numbered_pages, page, store,
};

const TIB: usize = 1 << 40;
const CHUNK: usize = 2 << 20;

fn arena_of(len: usize, template: Template) -> Arena {
    Arena::builder(len).template(template).reserve().unwrap()
}

/// Offsets where something could go wrong: both sides of page and chunk boundaries, the start and
/// the end of the arena, and places far away.
fn places(len: usize) -> Vec<usize> {
    let edges =
        [0, page(), 2 * page(), CHUNK, 3 * CHUNK, len / 2, len / 2 + CHUNK, len - page(), len];
    let around = |edge: usize| (edge.saturating_sub(9)..edge + 9).filter(move |at| *at < len);
    let mut places: Vec<_> = edges.into_iter().flat_map(around).collect();
    let mut rng = Rng(len as u64);
    places.extend((0..100).map(|_| rng.below(len)));
    places
}

/// Checks an arena against `content`, wherever something could go wrong.
fn check_places(arena: &Arena, content: impl Fn(usize) -> u8) {
    for at in places(arena.len()) {
        assert_eq!(load(arena, at), content(at), "at {at:#x} of {arena:?}");
    }
}

#[test]
fn untouched_pages_are_zero() {
    let arena = arena_of(TIB, Template::zero());
    check_places(&arena, |_| 0);
    assert_eq!(arena.stats().resident_bytes, 0, "reading zeroes takes no memory");
}

#[test]
fn writes_stay_and_leave_the_rest_of_the_page_alone() {
    for window in WINDOWS {
        let template = Template::repeat(&0x5Au8).unwrap();
        let arena = Arena::builder(TIB).template(template).window(window).reserve().unwrap();
        for at in places(TIB) {
            store(&arena, at, at as u8);
        }
        places(TIB).into_iter().for_each(|at| assert_eq!(load(&arena, at), at as u8));
        assert_eq!(load(&arena, 100), 0x5A);
        assert_eq!(load(&arena, TIB - 100), 0x5A);
    }
}

fn check_repeat<const SIZE: usize>() {
    let value: [u8; SIZE] = noise(SIZE, SIZE as u64).try_into().unwrap();
    for window in WINDOWS {
        let template = Template::repeat(&value).unwrap();
        let arena = Arena::builder(TIB).template(template).window(window).reserve().unwrap();
        check_places(&arena, |at| value[at % SIZE]);
        // A stream, so that windows grow and one system call copies many pages.
        let from = TIB / 4;
        for at in (from..from + 3 * CHUNK).step_by(61) {
            assert_eq!(load(&arena, at), value[at % SIZE], "at {at:#x}, window {window:?}");
        }
    }
}

#[test]
fn values_of_any_size_repeat() {
    check_repeat::<1>();
    check_repeat::<2>();
    check_repeat::<3>();
    check_repeat::<4>();
    check_repeat::<8>();
    check_repeat::<12>();
    check_repeat::<4096>();
    check_repeat::<5000>();
    check_repeat::<100_003>();
}

#[test]
fn a_repeated_zero_is_the_zero_template() {
    let arena = arena_of(TIB, Template::repeat(&[0u32; 7]).unwrap());
    check_places(&arena, |_| 0);
    assert_eq!(arena.stats().resident_bytes, 0);
}

/// Checks an arena that starts with `image` and goes on with zeroes, in windows of all kinds.
fn check_image(template: &Template, image: &[u8]) {
    let at = |offset: usize| image.get(offset).copied().unwrap_or(0);
    for window in WINDOWS {
        let builder = Arena::builder(TIB).template(template.clone()).window(window);
        let arena = builder.reserve().unwrap();
        check_places(&arena, at);
        let end = image.len() + 3 * page();
        for offset in (0..end).step_by(7).chain(image.len().saturating_sub(50)..image.len() + 50) {
            assert_eq!(load(&arena, offset), at(offset), "at {offset:#x}, {window:?}");
        }
    }
}

#[test]
fn bytes_are_an_image() {
    for len in [1, page() - 1, page(), page() + 1, 5 * page() + 77, 2 * CHUNK + 1234] {
        let image = noise(len, 1);
        check_image(&Template::bytes(&image).unwrap(), &image);
    }
}

#[test]
fn no_bytes_are_zeroes() {
    check_places(&arena_of(TIB, Template::bytes([]).unwrap()), |_| 0);
}

#[test]
fn an_image_may_fill_the_arena() {
    let image = noise(3 * page(), 2);
    let arena = arena_of(3 * page() - 5, Template::bytes(&image[..3 * page() - 5]).unwrap());
    assert_eq!(arena.len(), 3 * page());
    assert_eq!(bytes(&arena, 0..3 * page() - 5), image[..3 * page() - 5]);
    assert_eq!(bytes(&arena, 3 * page() - 5..3 * page()), [0; 5]);
}

#[test]
fn files_are_images() {
    for len in [1, page(), 5 * page() + 77, 2 * CHUNK + 1234] {
        let image = noise(len, 3);
        check_image(&Template::file(&file_of(&image)).unwrap(), &image);
    }
}

#[test]
fn an_empty_file_is_zeroes() {
    check_places(&arena_of(TIB, Template::file(&file_of(&[])).unwrap()), |_| 0);
}

#[test]
fn file_ranges_start_and_end_anywhere() {
    let content = noise(CHUNK + 5000, 4);
    let file = file_of(&content);
    let (page, len) = (page(), content.len());
    let ranges: [Range<usize>; 8] = [
        0..0,
        0..len,
        1..len - 1,
        100..200,
        page - 1..page + 1,
        page..3 * page,
        page + 17..3 * page + 18,
        len - page - 1..len,
    ];
    for range in ranges {
        let template = Template::file_range(&file, range.start as u64..range.end as u64).unwrap();
        check_image(&template, &content[range]);
    }
}

#[test]
fn a_file_template_outlives_the_file_handle() {
    let image = noise(3 * page(), 5);
    let template = Template::file(&file_of(&image)).unwrap();
    check_image(&template, &image);
}

#[test]
fn page_functions_make_each_page() {
    let word = |page_index: u64, index: usize| page_index << 16 | index as u64;
    for window in WINDOWS {
        let builder = Arena::builder(TIB).template(numbered_pages()).window(window);
        let arena = builder.reserve().unwrap();
        check_places(&arena, |at| {
            word((at / page()) as u64, at % page() / 8).to_ne_bytes()[at % 8]
        });
        for index in 0..1500 {
            let got = bytes(&arena, index * page() + 80..index * page() + 88);
            assert_eq!(got, word(index as u64, 10).to_ne_bytes());
        }
    }
}

#[test]
fn arenas_share_a_template_and_nothing_else() {
    let image = noise(9 * page(), 6);
    let template = Template::bytes(&image).unwrap();
    let first = arena_of(TIB, template.clone());
    let second = arena_of(20 * page(), template);
    store(&first, 5, !image[5]);
    assert_eq!(load(&second, 5), image[5]);
    drop(first);
    assert_eq!(bytes(&second, 0..9 * page()), image);
}

#[test]
fn fixed_windows_resolve_their_block() {
    for (pages, run) in [(1, 1037..1038), (16, 1024..1040), (512, 1024..1536)] {
        let arena = Arena::builder(TIB).window(Window::Pages(pages)).reserve().unwrap();
        store(&arena, 1037 * page(), 1);
        let run = run.start * page()..run.end * page();
        assert_eq!(arena.populated().collect::<Vec<_>>(), [run]);
        assert_eq!(arena.stats().faults, 1);
    }
}

#[test]
fn windows_end_at_the_limit_and_at_the_arena() {
    let builder = Arena::builder(20 * page()).limit(10 * page());
    let arena = builder.window(Window::Pages(512)).reserve().unwrap();
    store(&arena, 0, 1);
    assert_eq!(arena.stats().resident_bytes, 10 * page());
    arena.set_limit(20 * page()).unwrap();
    store(&arena, 19 * page(), 1);
    assert_eq!(arena.stats().resident_bytes, 20 * page());
}

#[test]
fn the_adaptive_window_grows_in_streams_only() {
    let arena = Arena::builder(TIB).lending(false).reserve().unwrap();
    (0..100).for_each(|index| store(&arena, index * 3 * page(), 1));
    let stats = arena.stats();
    assert_eq!((stats.faults, stats.resident_bytes), (100, 100 * page()));

    let arena = arena_of(TIB, Template::zero());
    (0..4096).for_each(|index| store(&arena, index * page(), 1));
    assert!(arena.stats().faults < 40, "{:?}", arena.stats());
    assert!(arena.stats().resident_bytes < 2 * 4096 * page(), "{:?}", arena.stats());
}

#[test]
fn populate_makes_pages_of_all_kinds_present() {
    let image = noise(5 * page() + 9, 7);
    let templates = [
        Template::zero(),
        Template::repeat(&[1u8, 2, 3]).unwrap(),
        Template::bytes(&image).unwrap(),
        numbered_pages(),
    ];
    for template in templates {
        let arena = arena_of(TIB, template.clone());
        let untouched = arena_of(TIB, template);
        let range = 3 * page()..2 * CHUNK + page();
        store(&arena, 4 * page(), 77);
        let faults = arena.stats().faults;
        arena.populate(range.clone()).unwrap();
        assert!(arena.populated().eq([range.clone()]));
        assert_eq!(arena_rss(&arena), range.len());
        assert_eq!(load(&arena, 4 * page()), 77, "what was present stays");
        for at in range.step_by(101).filter(|at| at / page() != 4) {
            assert_eq!(load(&arena, at), load(&untouched, at));
        }
        assert_eq!(arena.stats().faults, faults, "touching populated pages does not fault");
    }
}

#[test]
fn populating_and_discarding_nothing_is_fine() {
    let arena = arena_of(TIB, Template::zero());
    for at in [0, page(), TIB] {
        arena.populate(at..at).unwrap();
        discard(&arena, at..at);
    }
    assert_eq!(arena.populated().count(), 0);
}

#[test]
fn discarded_pages_show_the_template_again() {
    let arena = arena_of(TIB, Template::repeat(&7u8).unwrap());
    arena.populate(0..3 * CHUNK).unwrap();
    for at in (0..3 * CHUNK).step_by(page()) {
        store(&arena, at, 1);
    }
    discard(&arena, CHUNK - page()..2 * CHUNK + page());
    assert_eq!(
        arena.populated().collect::<Vec<_>>(),
        [0..CHUNK - page(), 2 * CHUNK + page()..3 * CHUNK]
    );
    assert_eq!(arena.stats().resident_bytes, 2 * CHUNK - 2 * page());
    assert_eq!(arena_rss(&arena), 2 * CHUNK - 2 * page());
    for at in (0..3 * CHUNK).step_by(page()) {
        let gone = (CHUNK - page()..2 * CHUNK + page()).contains(&at);
        assert_eq!(load(&arena, at), if gone { 7 } else { 1 });
    }
}

#[test]
fn reset_gives_everything_back() {
    let arena = arena_of(64 * TIB, Template::repeat(&7u8).unwrap());
    let mut rng = Rng(8);
    for _ in 0..100 {
        let places: Vec<_> = (0..20).map(|_| rng.below(64 * TIB)).collect();
        places.iter().for_each(|&at| store(&arena, at, 1));
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.reset() }.unwrap();
        assert_eq!(arena.stats().resident_bytes, 0);
        assert_eq!(arena.populated().count(), 0);
        assert_eq!(load(&arena, places[0]), 7);
    }
    assert_eq!(arena_rss(&arena), arena.stats().resident_bytes);
}

#[test]
fn limits_move() {
    let arena = Arena::builder(TIB).limit(page() + 1).reserve().unwrap();
    assert_eq!(arena.limit(), 2 * page(), "rounded up");
    store(&arena, 2 * page() - 1, 1);
    let error = arena.populate(page()..3 * page()).unwrap_err();
    assert_eq!((error.operation(), error.kind()), (Operation::Populate, ErrorKind::LimitExceeded));
    arena.set_limit(TIB).unwrap();
    store(&arena, TIB - 1, 1);
    arena.set_limit(0).unwrap();
    assert_eq!(arena.stats().limit_bytes, 0);
    assert_eq!(load(&arena, TIB - 1), 1, "present pages stay, whatever the limit");
}

#[test]
fn stats_tell_what_happened() {
    let arena = Arena::builder(10 * page() - 3).budget(9 * page() + 5).reserve().unwrap();
    let stats = arena.stats();
    assert_eq!((stats.reserved_bytes, stats.limit_bytes), (10 * page(), 10 * page()));
    assert_eq!((stats.budget_bytes, stats.budget_left()), (Some(9 * page()), Some(9 * page())));
    store(&arena, 0, 1);
    load(&arena, 5 * page());
    store(&arena, 9 * page(), 1);
    discard(&arena, 9 * page()..10 * page());
    let stats = arena.stats();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (page(), page()));
    assert_eq!((stats.peak_resident_bytes, stats.faults), (2 * page(), 3));
    assert_eq!((stats.raced_faults, stats.budget_left()), (0, Some(7 * page())));
    assert_eq!(arena_of(1, Template::zero()).stats().budget_left(), None);
}

#[test]
fn populated_runs_cross_chunks_and_never_touch() {
    let arena = Arena::builder(TIB).window(Window::Pages(1)).reserve().unwrap();
    let far = TIB / 2;
    let ranges =
        [page()..2 * page(), CHUNK - page()..3 * CHUNK, far..far + CHUNK, TIB - page()..TIB];
    ranges.iter().for_each(|range| arena.populate(range.clone()).unwrap());
    assert_eq!(arena.populated().collect::<Vec<_>>(), ranges);
    load(&arena, 2 * page());
    assert_eq!(arena.populated().next(), Some(page()..3 * page()), "lent pages are present too");
}

#[test]
fn covering_makes_whole_pages() {
    let arena = arena_of(10 * page() - 1, Template::zero());
    let page = page();
    assert_eq!(arena.covering(0..1), 0..page);
    assert_eq!(arena.covering(page - 1..page + 1), 0..2 * page);
    assert_eq!(arena.covering(page..2 * page), page..2 * page);
    assert_eq!(arena.covering(9 * page + 1..usize::MAX), 9 * page..10 * page);
    assert_eq!(arena.covering(20 * page..21 * page), 10 * page..10 * page);
    for at in [0, 1, page, 10 * page] {
        arena.populate(arena.covering(at..at)).unwrap();
    }
}

#[test]
fn arenas_tell_about_themselves() {
    let arena = Arena::builder(CHUNK).name("index").lending(false).reserve().unwrap();
    assert_eq!((arena.name(), arena.len()), ("index", CHUNK));
    store(&arena, 0, 1);
    assert!(format!("{arena:?}").contains("\"index\""), "{arena:?}");
    assert!(arena.stats().to_string().contains("4.0 KiB resident of 2.0 MiB"));
    let long = "x".repeat(63);
    assert_eq!(Arena::builder(1).name(&long).reserve().unwrap().name(), long);
}
