//! Moving pages: contents, counters and the kernel's view, whatever is in the way.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ArenaBuilder, Backend, ErrorKind, Template, page_size};
use std::ops::Range;
use support::fork::{fork, status_of_fork};
use support::{
    Rng, Watchdog, arena_rss, assert_success, discard, in_child, load, numbered_pages, read_into,
    smaps_of, store, text,
};

const CHUNK: usize = 2 << 20;

fn pages(range: Range<usize>) -> Range<usize> {
    range.start * page_size()..range.end * page_size()
}

/// Moves bytes; tests hold no references into arenas.
fn try_move(from: &Arena, range: Range<usize>, to: &Arena, at: usize) -> Result<(), ErrorKind> {
    // SAFETY: nobody has a reference into the arenas, and every byte is valid.
    unsafe { from.move_pages(range, to, at) }.map_err(|error| error.kind())
}

fn arena(name: &str) -> ArenaBuilder<'_> {
    Arena::builder(1 << 30).name(name)
}

fn two() -> (Arena, Arena) {
    (arena("from").reserve().unwrap(), arena("to").reserve().unwrap())
}

fn fill(arena: &Arena, range: Range<usize>, seed: usize) {
    range.step_by(page_size()).for_each(|at| store(arena, at + 5, (at / page_size() + seed) as u8));
}

fn check(arena: &Arena, range: Range<usize>, seed: usize, first: usize) {
    for (index, at) in range.step_by(page_size()).enumerate() {
        assert_eq!(load(arena, at + 5), (first + index + seed) as u8, "offset {at}");
    }
}

/// The books agree with the kernel.
#[track_caller]
fn check_books(arena: &Arena) {
    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, arena_rss(arena), "{} {stats}", arena.name());
}

#[test]
fn content_moves_and_the_source_is_untouched_again() {
    let (from, to) = two();
    fill(&from, 0..3 * CHUNK, 1);
    let faults = to.stats().faults;
    try_move(&from, 0..3 * CHUNK, &to, 5 * page_size()).unwrap();
    check(&to, 5 * page_size()..3 * CHUNK + 5 * page_size(), 1, 0);
    assert_eq!(to.stats().faults, faults, "the pages were there");
    assert_eq!((from.stats().resident_bytes, to.stats().resident_bytes), (0, 3 * CHUNK));
    assert_eq!(from.populated().count(), 0);
    assert_eq!(load(&from, 5), 0);
    check_books(&from);
    check_books(&to);
}

#[test]
fn what_the_target_held_is_gone() {
    let (from, to) = two();
    fill(&to, 0..2 * CHUNK, 9);
    store(&from, 3 * page_size(), 1);
    try_move(&from, 0..CHUNK, &to, 0).unwrap();
    assert_eq!(to.populated().collect::<Vec<_>>(), [pages(3..4), CHUNK..2 * CHUNK]);
    assert_eq!((load(&to, 3 * page_size()), load(&to, 5)), (1, 0));
    check(&to, CHUNK..2 * CHUNK, 9, CHUNK / page_size());
    check_books(&to);
}

#[test]
fn within_one_arena_the_budget_does_not_matter() {
    let bytes = CHUNK + 3 * page_size();
    let full = arena("full").budget(bytes).lending(false).reserve().unwrap();
    full.populate(0..bytes).unwrap();
    fill(&full, 0..bytes, 3);
    try_move(&full, 0..bytes, &full, 8 * CHUNK).unwrap();
    check(&full, 8 * CHUNK..8 * CHUNK + bytes, 3, 0);
    assert_eq!(full.stats().resident_bytes, bytes);
    // Within one chunk.
    try_move(&full, 8 * CHUNK..8 * CHUNK + page_size(), &full, 8 * CHUNK + 300 * page_size())
        .unwrap();
    assert_eq!(load(&full, 8 * CHUNK + 300 * page_size() + 5), 3);
    assert_eq!(full.stats().resident_bytes, bytes - page_size());
    check_books(&full);
}

#[test]
fn the_targets_budget_must_have_room() {
    let from = arena("from").reserve().unwrap();
    fill(&from, 0..2 * CHUNK, 1);
    let small = arena("small").budget(CHUNK + page_size()).reserve().unwrap();
    assert_eq!(try_move(&from, 0..2 * CHUNK, &small, 0), Err(ErrorKind::BudgetExhausted));
    // The first chunk fitted; each page is in one place.
    assert_eq!((from.stats().resident_bytes, small.stats().resident_bytes), (CHUNK, CHUNK));
    check(&small, 0..CHUNK, 1, 0);
    check(&from, CHUNK..2 * CHUNK, 1, CHUNK / page_size());
    // What the target held makes room for what comes in its place.
    try_move(&from, CHUNK..2 * CHUNK, &small, 0).unwrap();
    check(&small, 0..CHUNK, 1, CHUNK / page_size());
    check_books(&small);
    check_books(&from);
}

#[test]
fn a_lent_chunk_makes_room() {
    let from = arena("from").reserve().unwrap();
    fill(&from, pages(0..400), 1);
    let to = arena("to").budget(2 * CHUNK).reserve().unwrap();
    let mut rng = Rng(7);
    for _ in 0..30 {
        store(&to, 8 * CHUNK + rng.below(64) * 8 * page_size(), 1);
    }
    assert_eq!(to.stats().lent_bytes + to.stats().resident_bytes, CHUNK, "it is lent");
    try_move(&from, pages(0..400), &to, 0).unwrap();
    fill(&from, pages(0..400), 1);
    try_move(&from, pages(0..400), &to, CHUNK).unwrap();
    check(&to, CHUNK..CHUNK + 400 * page_size(), 1, 0);
    check_books(&to);
}

#[test]
fn lent_chunks_are_recalled_on_both_sides() {
    let (from, to) = two();
    let mut rng = Rng(7);
    let mut lend = |arena: &Arena| {
        for _ in 0..30 {
            store(arena, rng.below(64) * 8 * page_size(), 4);
        }
        assert_eq!(arena.stats().lent_bytes + arena.stats().resident_bytes, CHUNK, "it is lent");
    };
    lend(&from);
    lend(&to);
    let want: Vec<_> = (0..CHUNK).step_by(page_size()).map(|at| load(&from, at)).collect();
    try_move(&from, 0..CHUNK, &to, 0).unwrap();
    let got: Vec<_> = (0..CHUNK).step_by(page_size()).map(|at| load(&to, at)).collect();
    assert_eq!(want, got);
    assert_eq!(from.stats().resident_bytes + from.stats().lent_bytes, 0);
    check_books(&to);
    // A part of one.
    discard(&to, 0..CHUNK);
    lend(&to);
    try_move(&to, pages(8..16), &from, 0).unwrap();
    assert_eq!(load(&to, 8 * page_size()), 0);
    check_books(&to);
    check_books(&from);
}

#[test]
fn untouched_pages_read_at_the_target_as_at_the_source() {
    let numbers = || arena("numbers").template(numbered_pages()).reserve().unwrap();
    let sevens = arena("sevens").template(Template::repeat(&7u8).unwrap()).reserve().unwrap();
    let from = numbers();
    store(&from, 2 * page_size(), 99);
    try_move(&from, pages(0..600), &sevens, pages(1..2).start).unwrap();
    assert_eq!(load(&sevens, 0), 7);
    assert_eq!(load(&sevens, 3 * page_size()), 99);
    for page in (0..600).filter(|page| *page != 2) {
        assert_eq!(load(&sevens, (page + 1) * page_size() + 2), page as u8);
    }
    assert_eq!(load(&from, 2 * page_size() + 2), 2, "the template again");
    // An image, then the zeroes after it: of an untouched target of zeroes they cost nothing.
    let image = arena("image").template(Template::bytes([1; 4096]).unwrap()).reserve().unwrap();
    let zeroes = arena("zeroes").reserve().unwrap();
    try_move(&image, 0..CHUNK, &zeroes, 0).unwrap();
    assert_eq!(zeroes.stats().resident_bytes, 4096.max(page_size()));
    assert_eq!((load(&zeroes, 0), load(&zeroes, 4096)), (1, 0));
    // Zeroes over a template.
    try_move(&zeroes, CHUNK..CHUNK + page_size(), &sevens, 0).unwrap();
    assert_eq!(load(&sevens, 0), 0);
    check_books(&sevens);
    check_books(&zeroes);
}

#[test]
fn zeroes_that_were_only_read_move_as_such() {
    let (from, to) = two();
    assert_eq!(load(&from, 0), 0);
    try_move(&from, pages(0..1), &to, 0).unwrap();
    let charged = to.stats().lent_bytes + to.stats().resident_bytes;
    assert_eq!((charged, from.stats().lent_bytes), (page_size(), 0));
    read_into(&to, 0, &[3]).unwrap();
    assert_eq!(load(&to, 0), 3);
    check_books(&to);
}

#[test]
fn bad_ranges_are_errors() {
    let from = arena("from").limit(4 * CHUNK).reserve().unwrap();
    let to = arena("to").limit(4 * CHUNK).reserve().unwrap();
    let page = page_size();
    for (range, at, kind) in [
        (1..page, 0, ErrorKind::Unaligned),
        (0..page, 1, ErrorKind::Unaligned),
        (0..2 << 30, 0, ErrorKind::OutOfBounds),
        (0..page, 1 << 30, ErrorKind::OutOfBounds),
        (0..page, usize::MAX - page + 1, ErrorKind::OutOfBounds),
        (0..page, 4 * CHUNK, ErrorKind::LimitExceeded),
        (4 * CHUNK - page..4 * CHUNK + page, 0, ErrorKind::LimitExceeded),
    ] {
        assert_eq!(try_move(&from, range.clone(), &to, at), Err(kind), "{range:?} to {at}");
    }
    assert_eq!(try_move(&from, 0..2 * page, &from, page), Err(ErrorKind::Overlap));
    assert_eq!(try_move(&from, page..page, &from, page), Ok(()));
    assert_eq!(try_move(&from, 0..page, &from, page), Ok(()));
}

#[test]
fn poison_is_in_the_way() {
    let (from, to) = two();
    fill(&from, pages(0..9), 1);
    // SAFETY: nobody has a reference into the arenas.
    unsafe { to.poison(pages(4..5)) }.unwrap();
    assert_eq!(try_move(&from, pages(0..9), &to, 0), Err(ErrorKind::Poisoned));
    assert_eq!(try_move(&to, pages(0..9), &from, 0), Err(ErrorKind::Poisoned));
    check(&from, pages(0..9), 1, 0);
    try_move(&from, pages(0..9), &to, 5 * page_size()).unwrap();
    check(&to, pages(5..14), 1, 0);
}

#[test]
fn huge_pages_move_whole() {
    let builder = |name| arena(name).backend(Backend::Userfaultfd);
    let (from, to) = (builder("from").reserve().unwrap(), builder("to").reserve().unwrap());
    from.populate(0..8 * CHUNK).unwrap();
    let huge =
        |arena: &Arena| smaps_of(arena.as_ptr().addr(), arena.len(), &["AnonHugePages:"]) << 10;
    let before = huge(&from);
    if before == 0 {
        eprintln!("NOT RUN: this kernel gave no huge page");
        return;
    }
    fill(&from, 0..8 * CHUNK, 1);
    // The target has page tables, and pages.
    (0..8 * CHUNK).step_by(CHUNK / 4).for_each(|at| store(&to, 8 * CHUNK + at, 1));
    try_move(&from, 0..8 * CHUNK, &to, 8 * CHUNK).unwrap();
    check(&to, 8 * CHUNK..16 * CHUNK, 1, 0);
    assert_eq!(huge(&from), 0);
    // Before Linux 6.14 they arrive in parts.
    let arrived = huge(&to);
    assert!(arrived == before || arrived == 0, "{arrived} of {before}");
    check_books(&to);
}

/// A child that has a copy of the memory until the closure is done.
fn while_shared(work: impl FnOnce()) {
    let (mut ended, end) = std::io::pipe().unwrap();
    // SAFETY: the child waits for the pipe's end, and exits.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: as above; the parent's end is the only one.
        unsafe {
            libc::alarm(40);
            libc::close(std::os::fd::AsRawFd::as_raw_fd(&end));
            let mut byte = 0u8;
            libc::read(std::os::fd::AsRawFd::as_raw_fd(&ended), (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    assert!(pid > 0);
    work();
    drop(end);
    assert_eq!(support::fork::wait(pid), 0);
    let _ = std::io::Read::read(&mut ended, &mut [0]);
}

#[test]
fn pages_shared_with_a_child_are_copied() {
    let output = in_child("pages_shared_with_a_child_are_copied", "parent", || {
        let (from, to) = two();
        fill(&from, 0..3 * CHUNK, 1);
        while_shared(|| {
            // Some are this process's own again.
            (0..CHUNK).step_by(7 * page_size()).for_each(|at| store(&from, at, 2));
            try_move(&from, 0..3 * CHUNK, &to, 3 * page_size()).unwrap();
            check(&to, 3 * page_size()..3 * CHUNK + 3 * page_size(), 1, 0);
            assert_eq!((from.stats().resident_bytes, to.stats().resident_bytes), (0, 3 * CHUNK));
            assert_eq!(load(&from, 5), 0);
        });
        check_books(&from);
        check_books(&to);
    });
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn children_move_their_own() {
    let (from, to) = two();
    fill(&from, 0..CHUNK, 1);
    fork(|| {
        try_move(&from, 0..CHUNK, &to, 0).unwrap();
        check(&to, 0..CHUNK, 1, 0);
    });
    assert_eq!(to.stats().resident_bytes, 0);
    check(&from, 0..CHUNK, 1, 0);
    let forbidden = arena("forbidden").on_fork(lacuna::OnFork::Forbid).reserve().unwrap();
    assert_eq!(
        status_of_fork(|| {
            assert_eq!(try_move(&from, 0..CHUNK, &forbidden, 0), Err(ErrorKind::NotInherited));
        }),
        0
    );
}

#[test]
fn from_one_backend_to_the_other() {
    let with = |backend| Arena::builder(1 << 30).backend(backend).reserve().unwrap();
    for (from, to) in [
        (Backend::Userfaultfd, Backend::Mprotect),
        (Backend::Mprotect, Backend::Userfaultfd),
        (Backend::Mprotect, Backend::Mprotect),
    ] {
        let (from, to) = (with(from), with(to));
        fill(&from, 0..2 * CHUNK, 1);
        fill(&to, pages(3..6), 1);
        discard(&from, pages(10..20));
        try_move(&from, 0..2 * CHUNK, &to, page_size()).unwrap();
        check(&to, pages(1..11), 1, 0);
        assert_eq!(load(&to, 11 * page_size() + 5), 0);
        check(&to, 21 * page_size()..2 * CHUNK + page_size(), 1, 20);
        assert_eq!(load(&from, 5), 0);
        check_books(&from);
        check_books(&to);
    }
}

#[test]
fn locked_pages_are_an_error_and_stay() {
    let output = in_child("locked_pages_are_an_error_and_stay", "locked", || {
        let with = |name| arena(name).backend(Backend::Userfaultfd).reserve().unwrap();
        let (from, to) = (with("from"), with("to"));
        fill(&from, pages(0..4), 1);
        // SAFETY: the page is the arena's.
        let locked = unsafe { libc::mlock(from.as_ptr().cast(), page_size()) };
        assert_eq!(locked, 0);
        // Locked in one place only: copied, but they cannot be dropped.
        assert_eq!(try_move(&from, pages(0..4), &to, 0), Err(ErrorKind::Os));
        check(&from, pages(0..4), 1, 0);
        assert_eq!(to.stats().resident_bytes + from.stats().resident_bytes, 4 * page_size());
        check_books(&to);
        check_books(&from);
    });
    assert_success(&output);
}

#[test]
fn others_touch_the_chunks_meanwhile() {
    let _watchdog = Watchdog::new("others_touch_the_chunks_meanwhile", 120);
    let (one, two) = two();
    std::thread::scope(|scope| {
        // Two movers, opposite ways, of pages that nobody else touches; others beside them in the same chunks.
        for (from, to, first) in [(&one, &two, 0), (&two, &one, 100)] {
            scope.spawn(move || {
                for round in 0..200 {
                    fill(from, pages(first..first + 90), round);
                    try_move(from, pages(first..first + 90), to, pages(first..first + 1).start)
                        .unwrap();
                    check(to, pages(first..first + 90), round, first);
                }
            });
        }
        for (thread, arena) in [&one, &two].into_iter().enumerate() {
            scope.spawn(move || {
                let mut rng = Rng(thread as u64);
                for round in 0..20_000usize {
                    let page = 200 + rng.below(300);
                    store(arena, page * page_size(), round as u8);
                    assert_eq!(load(arena, page * page_size()), round as u8);
                    if round % 100 == 0 {
                        discard(arena, pages(page..page + 1));
                    }
                }
            });
        }
    });
    check_books(&one);
    check_books(&two);
}

#[test]
fn a_page_that_somebody_dropped_takes_no_other_along() {
    let with = |name| arena(name).backend(Backend::Userfaultfd).reserve().unwrap();
    let (from, to) = (with("from"), with("to"));
    fill(&from, 0..CHUNK, 1);
    // SAFETY: the page is the arena's, and nobody has a reference to it.
    let dropped = unsafe {
        let page = from.as_ptr().add(77 * page_size());
        libc::madvise(page.cast(), page_size(), libc::MADV_DONTNEED)
    };
    assert_eq!(dropped, 0);
    try_move(&from, 0..CHUNK, &to, page_size()).unwrap();
    check(&to, pages(1..78), 1, 0);
    assert_eq!(load(&to, 78 * page_size() + 5), 0);
    check(&to, 79 * page_size()..CHUNK + page_size(), 1, 78);
    check_books(&from);
    check_books(&to);
}
