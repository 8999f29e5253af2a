//! Images that arenas have in common until they write.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Errno, ErrorKind, OnFork, Template, Window, page_size};
use std::sync::atomic::{AtomicUsize, Ordering};
use support::fork::{fork, raw_fork, status_of_fork};
use support::{
    arena_memory, arena_rss, assert_killed, assert_success, backend, bytes, discard, drop_behind,
    fault_signal, file_of, in_child, load, noise, numbered_pages, read_into, reset, stderr, store,
};

const PAGES: usize = 1000;

fn image() -> Vec<u8> {
    noise(PAGES * page_size() + 100, 11)
}

fn shared(bytes: &[u8]) -> Template {
    Template::bytes(bytes).unwrap().shared().unwrap()
}

fn arena(template: &Template) -> Arena {
    Arena::builder(16 << 20).template(template.clone()).reserve().unwrap()
}

#[test]
fn frames_are_common_until_they_are_written() {
    let image = image();
    let template = shared(&image);
    let arena = || {
        let builder = Arena::builder(16 << 20).template(template.clone()).window(Window::Pages(1));
        builder.reserve().unwrap()
    };
    let (one, other) = (arena(), arena());
    for arena in [&one, &other] {
        assert!(bytes(arena, 0..image.len()) == image);
        let stats = arena.stats();
        // The last page, of which the image fills a part, is copied.
        assert_eq!(stats.resident_bytes, page_size());
        assert_eq!(stats.lent_bytes, PAGES * page_size());
        assert_eq!(arena_memory(arena), page_size());
        assert!(arena_rss(arena) >= PAGES * page_size(), "common frames count in Rss");
    }
    store(&one, 5 * page_size(), !image[5 * page_size()]);
    assert_eq!(load(&other, 5 * page_size()), image[5 * page_size()]);
    assert_eq!(one.stats().lent_bytes, PAGES * page_size(), "the kernel did that by itself");
    let stats = one.measure().unwrap();
    assert_eq!(stats.resident_bytes, 2 * page_size());
    assert_eq!(stats.lent_bytes, (PAGES - 1) * page_size());
    assert_eq!(arena_memory(&one), 2 * page_size());
    assert_eq!(other.measure().unwrap().resident_bytes, page_size());
    discard(&one, 0..8 << 20);
    assert_eq!((one.stats().resident_bytes, one.stats().lent_bytes, arena_rss(&one)), (0, 0, 0));
    assert!(bytes(&one, 0..image.len()) == image);
}

#[test]
fn a_page_that_is_written_first_takes_one_fault() {
    let image = image();
    let builder = Arena::builder(16 << 20).template(shared(&image)).lending(false);
    let arena = builder.reserve().unwrap();
    for page in [3, 90, 999] {
        store(&arena, page * page_size(), !image[page * page_size()]);
    }
    assert_eq!(arena.stats().faults, 3);
    assert_eq!(arena.stats().resident_bytes, 3 * page_size());
    assert_eq!(arena_memory(&arena), 3 * page_size());
    assert_eq!(load(&arena, 3 * page_size() + 1), image[3 * page_size() + 1]);
}

#[test]
fn system_calls_write_to_common_pages() {
    let image = image();
    let template = shared(&image);
    let (one, other) = (arena(&template), arena(&template));
    assert_eq!(load(&one, 0), image[0]);
    read_into(&one, 0, b"hello").unwrap();
    assert_eq!((bytes(&one, 0..5), load(&one, 5)), (b"hello".to_vec(), image[5]));
    assert!(read_into(&other, 0, b"hello").is_err());
    other.populate(0..page_size()).unwrap();
    read_into(&other, 0, b"hello").unwrap();
    assert_eq!(other.stats().resident_bytes, page_size());
}

/// What was read only is compared, what was written restored: nobody faults again.
#[test]
fn resets_in_place() {
    let mut image = image();
    image[70 * page_size()..90 * page_size()].fill(0);
    let builder = Arena::builder(16 << 20).template(shared(&image)).window(Window::Pages(1));
    let arena = builder.keep_resident(4 << 20).reserve().unwrap();
    let touch = |round: u8| {
        // Written first, read first, never written, in holes as well; and past the image.
        for page in [1, 75, 1000, 1010] {
            store(&arena, page * page_size() + 9, round);
        }
        for page in [2, 76, 1011] {
            let _ = load(&arena, page * page_size() + 9);
            store(&arena, page * page_size() + 9, round);
        }
        for page in [3, 77, 1012] {
            let want = image.get(page * page_size() + 9).copied().unwrap_or(0);
            assert_eq!(load(&arena, page * page_size() + 9), want);
        }
    };
    touch(1);
    let first = arena.stats();
    assert_eq!(first.resident_bytes + first.lent_bytes, 10 * page_size());
    for round in 2..9 {
        reset(&arena);
        let stats = arena.stats();
        assert_eq!(stats.faults, first.faults);
        assert_eq!(stats.resident_bytes, 7 * page_size(), "what was written is memory");
        assert_eq!((stats.lent_bytes, arena_memory(&arena)), (3 * page_size(), 7 * page_size()));
        for page in [1, 2, 3, 75, 76, 77, 1000, 1010, 1011, 1012] {
            let start = page * page_size();
            let mut want =
                image.get(start..).map_or(vec![], |it| it[..it.len().min(4096)].to_vec());
            want.resize(page_size(), 0);
            assert!(bytes(&arena, start..start + page_size()) == want, "page {page}");
        }
        touch(round);
    }
    assert_eq!(arena.stats().faults, first.faults);
}

#[test]
fn the_limit_may_lie_in_the_image() {
    let output = in_child("the_limit_may_lie_in_the_image", "limited", || {
        let image = image();
        let builder = Arena::builder(16 << 20).template(shared(&image)).limit(10 * page_size());
        let arena = builder.name("short").reserve().unwrap();
        assert!(bytes(&arena, 0..10 * page_size()) == image[..10 * page_size()]);
        assert_eq!(
            arena.populate(0..11 * page_size()).unwrap_err().kind(),
            ErrorKind::LimitExceeded
        );
        arena.set_limit(11 * page_size()).unwrap();
        assert_eq!(load(&arena, 10 * page_size()), image[10 * page_size()]);
        let _ = load(&arena, 11 * page_size());
    });
    assert_killed(&output, fault_signal());
    assert!(stderr(&output).contains("\"short\": read at offset 45056"), "{}", stderr(&output));
}

#[test]
fn a_budget_counts_common_pages() {
    let image = image();
    let builder = Arena::builder(16 << 20).template(shared(&image)).budget(100 * page_size());
    let arena = builder.reserve().unwrap();
    (0..50).for_each(|page| _ = load(&arena, 2 * page * page_size()));
    assert_eq!(arena.stats().budget_left(), Some(50 * page_size()));
    arena.populate(500 * page_size()..550 * page_size()).unwrap();
    assert_eq!(arena.stats().budget_left(), Some(0));
    let error = arena.populate(600 * page_size()..601 * page_size()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BudgetExhausted);
    // Each of them may become memory: there is room for that.
    (0..50).for_each(|page| store(&arena, 2 * page * page_size(), 1));
    let stats = arena.measure().unwrap();
    assert_eq!((stats.resident_bytes, stats.lent_bytes), (100 * page_size(), 0));
}

/// A stream goes on from the image into what follows it, in huge pages where it may.
#[test]
fn streams_cross_the_end_of_the_image() {
    for tail in [0, 100] {
        let image = noise(1500 * page_size() + tail, 5);
        for write in [false, true] {
            let arena = arena(&shared(&image));
            for offset in (0..arena.len()).step_by(page_size()) {
                let want = image.get(offset).copied().unwrap_or(0);
                assert_eq!(load(&arena, offset), want, "offset {offset}");
                if write {
                    store(&arena, offset, 1);
                }
            }
            let stats = arena.measure().unwrap();
            assert_eq!(stats.resident_bytes, arena_memory(&arena));
            assert_eq!(stats.resident_bytes == arena.len(), write);
            reset(&arena);
            arena.populate(0..arena.len()).unwrap();
            assert_eq!(arena.stats().resident_bytes, arena.len());
            assert!(bytes(&arena, 0..image.len()) == image);
        }
    }
}

#[test]
fn only_images_can_be_shared() {
    for template in [Template::repeat(&7u8).unwrap(), numbered_pages()] {
        let error = template.shared().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotShareable);
        assert!(error.to_string().contains("only images can be shared"), "{error}");
    }
    assert_eq!(load(&arena(&Template::zero().shared().unwrap()), 5), 0);
    assert_eq!(load(&arena(&shared(b"")), 5), 0);
    // Less than a page, exactly one, and shared already.
    for len in [1, 100, page_size(), page_size() + 1] {
        let image = noise(len, 2);
        let template = shared(&image).shared().unwrap();
        let arena = arena(&template);
        assert!(bytes(&arena, 0..len) == image);
        store(&arena, 0, !image[0]);
        reset(&arena);
        assert!(bytes(&arena, 0..len) == image);
        assert_eq!(load(&arena, len), 0);
        let exact = Arena::builder(len).template(template).reserve().unwrap();
        assert!(bytes(&exact, 0..len) == image);
        assert!(format!("{exact:?}").contains("Arena"));
    }
}

/// A file's bytes are copied: it may be cut short afterwards, and must not be before.
#[test]
fn files_may_be_cut_short_afterwards() {
    let image = image();
    let file = file_of(&image);
    let template = Template::file(&file).unwrap().shared().unwrap();
    let early = Template::file(&file).unwrap();
    file.set_len(10).unwrap();
    assert_eq!(early.shared().unwrap_err().kind(), ErrorKind::TemplateUnreadable);
    let arena = Arena::builder(16 << 20).template(template).keep_resident(1 << 20);
    let arena = arena.reserve().unwrap();
    store(&arena, 0, !image[0]);
    reset(&arena);
    assert_eq!(arena.stats().resident_bytes, page_size(), "restored in place");
    assert!(bytes(&arena, 0..image.len()) == image);
}

#[test]
fn children_inherit() {
    assert_success(&in_child("children_inherit", "fork", || {
        let image = image();
        let template = shared(&image);
        let inherited = arena(&template);
        let read = arena(&template);
        assert_eq!(load(&read, 7 * page_size()), image[7 * page_size()]);
        assert_eq!(load(&inherited, 2 * page_size()), image[2 * page_size()]);
        store(&inherited, 0, 1);
        store(&inherited, 2 * page_size(), 2);
        let before = inherited.stats();
        fork(|| {
            assert_eq!(inherited.stats(), before);
            assert_eq!((load(&inherited, 0), load(&inherited, 2 * page_size())), (1, 2));
            assert_eq!(load(&inherited, 9 * page_size()), image[9 * page_size()]);
            store(&inherited, 0, 9);
            store(&inherited, 20 * page_size(), 9);
            store(&read, 7 * page_size(), 9);
            assert!(bytes(&read, 8 * page_size()..image.len()) == image[8 * page_size()..]);
            fork(|| assert_eq!((load(&inherited, 0), load(&read, 7 * page_size())), (9, 9)));
            // Common frames that the kernel did not map for the child are there when touched.
            reset(&inherited);
            reset(&read);
            assert!(bytes(&inherited, 0..image.len()) == image);
            let stats = inherited.measure().unwrap();
            assert_eq!(stats.resident_bytes, arena_memory(&inherited));
        });
        assert_eq!(
            (load(&inherited, 0), load(&inherited, 20 * page_size())),
            (1, image[20 * 4096])
        );
        assert_eq!(load(&read, 7 * page_size()), image[7 * page_size()]);
    }));
}

#[test]
fn children_may_not_inherit() {
    let output = in_child("children_may_not_inherit", "fork", || {
        let image = image();
        let template = shared(&image);
        let made = |what| {
            let builder = Arena::builder(16 << 20).template(template.clone()).on_fork(what);
            let arena = builder.reserve().unwrap();
            assert_eq!(load(&arena, page_size()), image[page_size()]);
            for page in [1, 2, 1000, 3000] {
                store(&arena, page * page_size(), !image.get(page * 4096).unwrap_or(&0));
            }
            arena
        };
        let (wiped, forbidden) = (made(OnFork::Wipe), made(OnFork::Forbid));
        let before = wiped.stats();
        fork(|| {
            let stats = wiped.stats();
            assert_eq!((stats.resident_bytes, stats.lent_bytes, stats.faults), (0, 0, 0));
            assert_eq!((wiped.populated().count(), arena_rss(&wiped)), (0, 0));
            assert!(bytes(&wiped, 0..image.len()) == image);
            assert_eq!(load(&wiped, 3000 * page_size()), 0);
            store(&wiped, 0, !image[0]);
            fork(|| assert_eq!(load(&wiped, 0), image[0]));
            assert_eq!(arena_rss(&forbidden), 0);
            let error = forbidden.populate(0..page_size()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotInherited);
            let status = status_of_fork(|| _ = load(&forbidden, page_size()));
            assert!(libc::WIFSIGNALED(status));
        });
        assert_eq!(wiped.stats(), before);
        assert_eq!(load(&forbidden, page_size()), !image[page_size()]);
    });
    assert!(output.status.success(), "{}", support::text(&output));
    assert!(stderr(&output).contains("a forked child must not touch this arena"));
}

/// A child without hooks has errors from methods, and what it does not reach its parent.
#[test]
fn children_without_hooks() {
    assert_success(&in_child("children_without_hooks", "fork", || {
        let image = image();
        let arena = arena(&shared(&image));
        store(&arena, 0, !image[0]);
        raw_fork(|| {
            assert_eq!(arena.populate(0..4096).unwrap_err().kind(), ErrorKind::ForkedWithoutHooks);
            // SAFETY: nobody has a reference into the arena.
            assert!(unsafe { arena.reset() }.is_err());
            store(&arena, 0, 77);
        });
        assert_eq!(load(&arena, 0), !image[0]);
    }));
}

/// Threads that touch the same pages first see the image, or what one of them wrote.
#[test]
fn threads_touch_the_same_pages() {
    let image = image();
    let template = shared(&image);
    for round in 0..20 {
        let arena = arena(&template);
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (arena, image, next) = (&arena, &image, &next);
                scope.spawn(move || {
                    loop {
                        let page = next.fetch_add(1, Ordering::Relaxed) / 2;
                        if page >= PAGES {
                            break;
                        }
                        let page = page * 7 % PAGES;
                        // A byte of each thread's own, and one that nobody writes.
                        let at = page * page_size();
                        if (page + round).is_multiple_of(2) {
                            store(arena, at + thread, thread as u8);
                            assert_eq!(load(arena, at + thread), thread as u8);
                        }
                        assert_eq!(load(arena, at + 64), image[at + 64]);
                    }
                });
            }
        });
        let stats = arena.measure().unwrap();
        assert_eq!(stats.resident_bytes, arena_memory(&arena));
        assert!(stats.resident_bytes + stats.lent_bytes <= PAGES * page_size());
    }
}

/// Locked address space is not filled.
#[test]
fn locking_all_memory_fills_nothing() {
    let output = in_child("locking_all_memory_fills_nothing", "locked", || {
        let template = shared(&image());
        // SAFETY: it changes no content.
        if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
            eprintln!("NOT RUN: this process may not lock memory");
            return;
        }
        let arena = match Arena::builder(16 << 20).template(template).reserve() {
            Ok(arena) => arena,
            Err(error) => {
                assert_eq!(error.errno(), Some(Errno::EAGAIN), "{error}");
                eprintln!("NOT RUN: {error}");
                return;
            }
        };
        assert_eq!(arena_rss(&arena), 0);
        store(&arena, 0, 1);
        assert_eq!(arena_memory(&arena), page_size());
        discard(&arena, 0..page_size());
    });
    assert!(output.status.success(), "{}", support::text(&output));
    eprint!("{}", stderr(&output));
}

/// The kernel is asked for what the image's part of an arena needs on either backend.
#[test]
fn the_backend_is_the_arenas() {
    let arena = arena(&shared(&image()));
    assert_eq!(arena.backend(), backend());
    if arena.backend() == Backend::Userfaultfd {
        // A page that somebody dropped behind our back comes back.
        store(&arena, 0, 1);
        drop_behind(&arena, 0..page_size());
        assert_eq!(load(&arena, 0), image()[0]);
    }
}
