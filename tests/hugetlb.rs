//! Arenas of 2 MiB pages out of hugetlbfs's pool.
//!
//! The tests set pages aside where they may, one test at a time, and say so where they may not.

#![allow(missing_docs, reason = "a test")]

#[path = "hugetlb/model.rs"]
mod model;
#[path = "support/pool.rs"]
mod pool;
mod support;

use lacuna::{
    Arena, ArenaBuilder, Backend, Bound, Errno, ErrorKind, Heap, OnFork, PageSize, SparseArray,
    Template, page_size,
};
use pool::{HUGE, Pool};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use support::fork::fork;
use support::{
    assert_killed, discard, file_of, in_child, load, noise, numbered_pages, read_into, smaps_of,
    stderr, store,
};

pub(crate) fn huge(len: usize) -> ArenaBuilder<'static> {
    Arena::builder(len).name("huge").page_size(PageSize::Huge).backend(Backend::Userfaultfd)
}

/// Bytes of huge pages that the kernel reports for an arena.
fn memory(arena: &Arena) -> usize {
    let fields = ["Private_Hugetlb:", "Shared_Hugetlb:"];
    smaps_of(arena.as_ptr().addr(), arena.len(), &fields) << 10
}

#[track_caller]
pub(crate) fn assert_pages(arena: &Arena, pages: usize) {
    let stats = arena.stats();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (pages * HUGE, 0), "{stats}");
    assert_eq!(memory(arena), pages * HUGE);
    assert_eq!(arena.measure().unwrap().resident_bytes, pages * HUGE);
}

#[test]
fn a_tebibyte_of_huge_pages() {
    let Some(_pool) = Pool::with(3) else { return };
    let arena = huge((1 << 40) - 5).limit(1 << 39).budget(3 * HUGE + 5).reserve().unwrap();
    assert_eq!((arena.page_size(), arena.len()), (HUGE, 1 << 40));
    assert_eq!(arena.as_ptr().addr() % HUGE, 0);
    assert_eq!(arena.stats().budget_bytes, Some(3 * HUGE));
    assert_eq!(arena.covering(5..HUGE + 1), 0..2 * HUGE);

    // Every byte of a page comes with one fault, also when it is only read.
    assert_eq!(load(&arena, (1 << 38) + 12345), 0);
    (0..HUGE).step_by(page_size()).for_each(|offset| store(&arena, (1 << 38) + offset, 1));
    assert_eq!(arena.stats().faults, 1);
    store(&arena, (1 << 39) - 1, 7);
    assert_pages(&arena, 2);
    assert_eq!(
        arena.populated().collect::<Vec<_>>(),
        [1 << 38, (1 << 39) - HUGE].map(|at| at..at + HUGE)
    );

    // System calls see what is there.
    assert!(read_into(&arena, 1 << 38, b"abc").is_ok());
    assert!(read_into(&arena, 0, b"abc").is_err());
    arena.populate(0..HUGE).unwrap();
    assert!(read_into(&arena, 0, b"abc").is_ok());
    let full = arena.populate(HUGE..2 * HUGE).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::BudgetExhausted);
    for range in [0..page_size(), page_size()..HUGE] {
        assert_eq!(arena.populate(range).unwrap_err().kind(), ErrorKind::Unaligned);
    }
    arena.set_limit(1).unwrap();
    assert_eq!(arena.limit(), HUGE);
}

/// What each template gives, page by page, against the same template in base pages.
#[test]
fn templates_are_what_they_are_in_base_pages() {
    let Some(_pool) = Pool::with(4) else { return };
    let len = 4 * HUGE;
    let bytes = noise(3 * HUGE, 5);
    let file = file_of(&bytes);
    let range = |start, end| Template::file_range(&file, start..end).unwrap();
    let templates = [
        Template::zero(),
        Template::repeat(&0x5Au8).unwrap(),
        Template::repeat(&[1u8, 2, 3]).unwrap(),
        Template::repeat::<[u8; 70_001]>(bytes.first_chunk().unwrap()).unwrap(),
        Template::repeat::<[u8; HUGE + 9]>(bytes.first_chunk().unwrap()).unwrap(),
        Template::bytes(&bytes[..17]).unwrap(),
        Template::bytes(&bytes[..HUGE]).unwrap(),
        Template::bytes(&bytes[..2 * HUGE + 3 * page_size() + 11]).unwrap(),
        range(0, 3 * HUGE as u64),
        range(0, 2 * HUGE as u64 + 70_001),
        range(4097, 2 * HUGE as u64),
        range(5, 600),
        numbered_pages(),
    ];
    for template in templates {
        let arena = huge(len).template(template.clone()).reserve().unwrap();
        let small = Arena::builder(len).template(template).reserve().unwrap();
        small.populate(0..len).unwrap();
        (0..len).step_by(HUGE).rev().for_each(|offset| _ = load(&arena, offset + 777));
        assert_eq!(arena.stats().faults, 4);
        assert_pages(&arena, 4);
        // SAFETY: all of both is present, and nobody writes to either.
        let [got, want] = [&arena, &small]
            .map(|it| unsafe { std::slice::from_raw_parts(it.as_ptr().cast_const(), len) });
        assert!(got == want, "{small:?}");
    }
}

#[test]
fn a_template_that_was_cut_short_is_an_error() {
    let Some(_pool) = Pool::with(2) else { return };
    let file = file_of(&noise(2 * HUGE, 6));
    let template = Template::file(&file).unwrap();
    let arena = huge(2 * HUGE).template(template.clone()).reserve().unwrap();
    file.set_len(HUGE as u64 + 5).unwrap();
    assert_eq!(load(&arena, 3), noise(4, 6)[3]);
    let error = arena.populate(HUGE..2 * HUGE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TemplateUnreadable);
    // Its last page, which is not a whole one, is taken when the arena is made.
    file.set_len(HUGE as u64 + 70_000).unwrap();
    let template = Template::file(&file).unwrap();
    file.set_len(0).unwrap();
    let error = huge(2 * HUGE).template(template).reserve().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TemplateUnreadable);
}

#[test]
fn discarded_pages_go_back_to_the_pool() {
    let Some(_pool) = Pool::exactly(3) else { return };
    let template = Template::repeat(&7u8).unwrap();
    let arena = huge(64 * HUGE).template(template).reserve().unwrap();
    for round in 0..20 {
        (0..3).for_each(|page| store(&arena, (3 * round + page) * HUGE + 5, 1));
        assert_pages(&arena, 3);
        assert_eq!(pool::available(), 0);
        discard(&arena, 3 * round * HUGE..(3 * round + 2) * HUGE);
        assert_pages(&arena, 1);
        assert_eq!(load(&arena, 3 * round * HUGE + 5), 7);
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.reset() }.unwrap();
        assert_pages(&arena, 0);
    }
    drop(arena);
    let kept = huge(4 * HUGE).template(numbered_pages()).keep_resident(HUGE).reserve().unwrap();
    (0..2).for_each(|page| store(&kept, page * HUGE + 6 * page_size(), 99));
    // SAFETY: nobody has a reference into the arena.
    unsafe { kept.reset() }.unwrap();
    assert_pages(&kept, 1);
    assert_eq!((load(&kept, 6 * page_size() + 2), kept.stats().faults), (6, 2));
    assert_eq!(load(&kept, HUGE + 6 * page_size()), 0);
}

#[test]
fn many_threads_touch_the_same_pages() {
    const PAGES: usize = 16;
    let Some(_pool) = Pool::with(PAGES) else { return };
    let table = SparseArray::<AtomicU64>::zeroed_in(PAGES * HUGE / 8, |arena| {
        arena.page_size(PageSize::Huge).backend(Backend::Userfaultfd)
    })
    .unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let table = &table;
            scope.spawn(move || {
                for index in (thread..table.len()).step_by(997) {
                    table[index].fetch_add(1, Ordering::Relaxed);
                }
                (0..PAGES).for_each(|page| {
                    table[page * HUGE / 8].fetch_add(1 << 32, Ordering::Relaxed);
                });
            });
        }
    });
    assert_pages(table.arena(), PAGES);
    assert!((0..PAGES).all(|page| table[page * HUGE / 8].load(Ordering::Relaxed) >> 32 == 4));
    let touched: u64 = table.iter().map(|it| it.load(Ordering::Relaxed) & 0xffff_ffff).sum();
    let count = |thread: usize| (table.len() - thread).div_ceil(997) as u64;
    assert_eq!(touched, (0..4).map(count).sum::<u64>());
}

#[test]
fn arrays_of_huge_pages_keep_their_value() {
    let Some(_pool) = Pool::with(3) else { return };
    let mut table = SparseArray::filled_in(1 << 24, 0x0102_0304_0506_0708u64, |arena| {
        arena.page_size(PageSize::Huge).backend(Backend::Userfaultfd)
    })
    .unwrap();
    let whole = HUGE / 8;
    (0..3).for_each(|page| table[page * whole + 5] = 1);
    table.discard(3..2 * whole + 6).unwrap();
    assert_pages(table.arena(), 2);
    assert!([0, 5, 5 + whole, 5 + 2 * whole].iter().all(|&it| table[it] == 0x0102_0304_0506_0708));
}

#[test]
fn an_empty_pool_is_an_error_with_a_remedy() {
    let Some(pool) = Pool::exactly(0) else { return };
    let error = huge(1 << 30).reserve().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoHugePages);
    let hint = error.hint().unwrap();
    assert!(hint.contains("nr_hugepages") && hint.contains("nr_overcommit_hugepages"), "{hint}");
    drop(pool);
}

#[test]
fn a_pool_that_runs_out_is_a_violation() {
    let name = "a_pool_that_runs_out_is_a_violation";
    let Some(_pool) = Pool::exactly(2) else { return };
    let output = in_child(name, "touch", || {
        fn note(violation: &lacuna::Violation) {
            assert_eq!((violation.bound(), violation.offset()), (Bound::NoHugePages, 2 * HUGE + 9));
        }
        // SAFETY: it only compares.
        unsafe { lacuna::set_violation_hook(Some(note)) };
        let arena = huge(1 << 30).reserve().unwrap();
        (0..3).for_each(|page| store(&arena, page * HUGE + 9, 1));
    });
    assert_killed(&output, libc::SIGBUS);
    let line = stderr(&output);
    assert!(
        line.starts_with("lacuna: arena \"huge\": write at offset 4194313: no huge page"),
        "{line}"
    );
    assert!(line.contains("vm.nr_hugepages"), "{line}");

    let arena = huge(1 << 30).reserve().unwrap();
    let error = arena.populate(0..3 * HUGE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoHugePages, "{error}");
    assert_pages(&arena, 2);
    discard(&arena, 0..HUGE);
    arena.populate(2 * HUGE..3 * HUGE).unwrap();
    assert_pages(&arena, 2);
}

#[test]
fn forked_children_copy_what_is_written() {
    let Some(_pool) = Pool::with(6) else { return };
    let template = Template::repeat(&7u8).unwrap();
    let arena = huge(1 << 30).template(template.clone()).reserve().unwrap();
    let wiped = huge(1 << 30).template(template.clone()).on_fork(OnFork::Wipe).reserve().unwrap();
    let secret = huge(1 << 30).template(template).on_fork(OnFork::Forbid).reserve().unwrap();
    store(&arena, 0, 1);
    store(&wiped, 0, 2);
    store(&secret, 0, 3);
    fork(|| {
        assert_eq!((load(&arena, 0), load(&arena, 1), load(&arena, HUGE)), (1, 7, 7));
        store(&arena, 0, 9);
        assert_eq!(arena.stats().resident_bytes, 2 * HUGE);
        assert_eq!(arena.measure().unwrap().resident_bytes, 2 * HUGE);
        assert_eq!((wiped.stats().resident_bytes, load(&wiped, 0)), (0, 7));
        assert_pages(&wiped, 1);
        assert_eq!(secret.populate(0..HUGE).unwrap_err().kind(), ErrorKind::NotInherited);
        assert_pages(&secret, 0);
        assert!(read_into(&secret, 0, b"abc").is_err());
        discard(&arena, 0..2 * HUGE);
        assert_eq!(load(&arena, 0), 7);
    });
    assert_eq!((load(&arena, 0), load(&wiped, 0), load(&secret, 0)), (1, 2, 3));
    assert_pages(&arena, 1);
}

/// The copy that a write needs comes from the pool too, also in the parent.
#[test]
fn a_copy_that_cannot_be_had_is_a_violation() {
    let name = "a_copy_that_cannot_be_had_is_a_violation";
    let Some(_pool) = Pool::exactly(2) else { return };
    for role in ["parent", "child"] {
        let output = in_child(name, role, || {
            let arena = huge(1 << 30).reserve().unwrap();
            (0..2).for_each(|page| store(&arena, page * HUGE, 5));
            let (mut gone, alive) = std::io::pipe().unwrap();
            // SAFETY: the child only touches memory, and exits.
            let child = unsafe { libc::fork() };
            assert!(child >= 0);
            if (child == 0) == (role == "child") {
                assert_eq!(load(&arena, 0), 5);
                store(&arena, 0, 6);
                unreachable!("there is no page to copy it to");
            }
            if child == 0 {
                // Until the parent has died.
                drop(alive);
                let _ = gone.read(&mut [0]);
                // SAFETY: ends the child without running anything of the parent's.
                unsafe { libc::_exit(0) };
            }
            let mut status = 0;
            // SAFETY: the child is ours.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
            assert_eq!(load(&arena, 0), 5);
        });
        match role {
            "child" => assert!(output.status.success(), "{}", support::text(&output)),
            _ => assert_killed(&output, libc::SIGBUS),
        }
        assert!(stderr(&output).contains(": no huge page is left"), "{}", support::text(&output));
    }
}

#[test]
fn what_cannot_be_had_is_refused() {
    let Some(_pool) = Pool::with(1) else { return };
    let kind = |builder: ArenaBuilder<'_>| builder.reserve().unwrap_err().kind();
    assert_eq!(kind(huge(0)), ErrorKind::ZeroLength);
    assert_eq!(kind(huge(HUGE).budget(HUGE - 1)), ErrorKind::BudgetTooSmall);
    assert_eq!(kind(huge(HUGE).limit(HUGE + 1)), ErrorKind::LimitPastLength);
    assert_eq!(kind(huge(HUGE).backend(Backend::Mprotect)), ErrorKind::NeedsUserfaultfd);
    let heap = Heap::new(huge(1 << 30).reserve().unwrap()).unwrap_err();
    assert_eq!(heap.kind(), ErrorKind::NotBasePages);
    let small = file_of(&[0; 4096]);
    assert_eq!(kind(huge(4096).memfd(&small)), ErrorKind::PageSizeMismatch);
}

/// Huge pages that processes share: a memfd of hugetlbfs.
#[test]
fn huge_pages_can_be_shared() {
    let Some(_pool) = Pool::exactly(3) else { return };
    let template = Template::repeat(&7u8).unwrap();
    let one = huge(1 << 36).template(template.clone()).share().reserve().unwrap();
    let file = one.memfd().unwrap();
    let builder = Arena::builder(1 << 30).template(template).backend(Backend::Userfaultfd);
    let other = builder.memfd(&file).reserve().unwrap();
    assert_eq!(other.page_size(), HUGE);
    store(&one, 5, 1);
    store(&other, HUGE + 5, 2);
    assert_eq!((load(&other, 5), load(&one, HUGE + 5), load(&one, 6)), (1, 2, 7));
    assert_eq!([&one, &other].map(|it| it.stats().faults), [1, 1]);
    fork(|| {
        store(&one, 5, 3);
        store(&other, 2 * HUGE, 4);
    });
    assert_eq!((load(&one, 5), load(&one, 2 * HUGE)), (3, 4));
    let full = one.populate(0..4 * HUGE).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::NoHugePages);
    assert_eq!(one.measure().unwrap().resident_bytes, 3 * HUGE);
    discard(&other, 0..HUGE);
    assert_eq!(load(&one, 5), 7);
    discard(&other, 0..other.len());
    assert_eq!(pool::available(), 3);
    for arena in [&one, &other] {
        assert_eq!(arena.measure().unwrap().resident_bytes, 0);
    }
}

/// What the kernel does where one arena's pages are dropped behind its back.
#[test]
fn a_page_that_somebody_dropped_comes_back() {
    let Some(_pool) = Pool::with(1) else { return };
    let arena = huge(4 * HUGE).template(Template::repeat(&7u8).unwrap()).reserve().unwrap();
    store(&arena, 0, 1);
    // SAFETY: the page is the arena's, and nobody has a reference to it.
    let dropped = unsafe { libc::madvise(arena.as_ptr().cast(), HUGE, libc::MADV_DONTNEED) };
    assert_eq!(dropped, 0, "{}", Errno::last());
    assert_eq!(load(&arena, 0), 7);
    assert_pages(&arena, 1);
}

/// Files are what images are read from, also by the whole page.
#[test]
fn an_image_shows_what_its_file_holds_when_it_is_touched() {
    let Some(_pool) = Pool::with(1) else { return };
    let file = file_of(&vec![1; HUGE]);
    let arena = huge(HUGE).template(Template::file(&file).unwrap()).reserve().unwrap();
    file.write_all_at(&[2], 5).unwrap();
    assert_eq!((load(&arena, 4), load(&arena, 5)), (1, 2));
}
