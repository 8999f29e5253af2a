//! The backend without userfaultfd: chosen by the program, by the environment, or because userfaultfd is
//! denied; and what is different about it.
//!
//! That it keeps the contract is shown by the other tests, all of which run on both (`.ci/test.sh`).

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, Errno, ErrorKind, Heap, Operation, SparseArray, Template, page_size};
use std::alloc::{GlobalAlloc, Layout};
use std::fs;
use support::fork::{status_of_fork, status_of_raw_fork};
use support::seccomp::{deny, deny_userfaultfd};
use support::{
    Rng, arena_rss, assert_killed, assert_success, discard, in_child, load, numbered_pages, rerun,
    stderr, store, text,
};

/// The environment variable under test.
const VARIABLE: &str = "LACUNA_BACKEND";

fn protected(len: usize) -> lacuna::ArenaBuilder<'static> {
    Arena::builder(len).backend(Backend::Mprotect)
}

/// Touches an arena of each template, and a heap.
fn use_everything() {
    // SAFETY: no other thread of the child looks at the environment.
    unsafe { std::env::remove_var(VARIABLE) };
    let arena = Arena::builder(1 << 40).template(numbered_pages()).reserve().unwrap();
    assert_eq!(arena.backend(), Backend::Mprotect);
    for page in [0, 1, 5000, 1 << 27] {
        assert_eq!(load(&arena, page * page_size() + 2), page as u8);
        store(&arena, page * page_size(), 1);
    }
    discard(&arena, 0..page_size());
    assert_eq!(load(&arena, 0), 0);
    assert_eq!(arena_rss(&arena), arena.stats().resident_bytes);
    let mut array = SparseArray::<u64>::filled(1 << 36, 7).unwrap();
    array[1 << 35] += 1;
    assert_eq!((array[1 << 35], array[1 << 34]), (8, 7));
    let heap = Heap::new(Arena::builder(1 << 30).reserve().unwrap()).unwrap();
    let layout = Layout::from_size_align(100_000, 8).unwrap();
    // SAFETY: the layout has a size; the block is freed with it.
    unsafe {
        let block = heap.alloc(layout);
        block.write_bytes(1, 100_000);
        heap.dealloc(block, layout);
    }
}

#[test]
fn a_denied_userfaultfd_is_replaced() {
    let name = "a_denied_userfaultfd_is_replaced";
    for errno in [libc::EPERM, libc::EACCES, libc::ENOSYS] {
        let output = in_child(name, &errno.to_string(), || {
            deny_userfaultfd(errno);
            use_everything();
        });
        assert_success(&output);
    }
}

#[test]
fn a_denied_userfaultfd_that_was_asked_for_is_an_error_with_a_hint() {
    let name = "a_denied_userfaultfd_that_was_asked_for_is_an_error_with_a_hint";
    let output = in_child(name, "denied", || {
        deny_userfaultfd(libc::EPERM);
        let builder = Arena::builder(1 << 30).backend(Backend::Userfaultfd);
        let error = builder.reserve().unwrap_err();
        assert_eq!((error.operation(), error.errno()), (Operation::Open, Some(Errno::EPERM)));
        assert!(error.hint().unwrap().contains("seccomp"), "{error}");
    });
    assert_success(&output);
}

#[test]
fn the_environment_chooses() {
    if std::env::var_os("LACUNA_TEST_CHOICE").is_some() {
        match Arena::builder(1).reserve() {
            Ok(arena) => println!("it is {}", arena.backend()),
            Err(error) => println!("it is refused: {:?}", error.kind()),
        }
        return;
    }
    let run = |value| {
        let env = [("LACUNA_TEST_CHOICE", "1"), (VARIABLE, value)];
        support::stdout(&rerun("the_environment_chooses", &env))
    };
    assert!(run("mprotect").contains("it is mprotect"));
    assert!(run("userfaultfd").contains("it is userfaultfd"));
    let refused = format!("it is refused: {:?}", ErrorKind::UnknownBackend);
    assert!(run("Mprotect").contains(&refused));
    assert!(run("none").contains(&refused));
}

/// Both kinds side by side, with SIGBUS and SIGSEGV each for its own.
#[test]
fn both_backends_work_in_one_process() {
    let arenas: Vec<_> = [Backend::Mprotect, Backend::Userfaultfd]
        .into_iter()
        .cycle()
        .take(20)
        .map(|backend| {
            let builder = Arena::builder(1 << 30).template(numbered_pages());
            builder.backend(backend).reserve().unwrap()
        })
        .collect();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let arenas = &arenas;
            scope.spawn(move || {
                let mut rng = Rng(seed);
                for _ in 0..4000 {
                    let page = rng.below(1 << 10);
                    let arena = &arenas[rng.below(arenas.len())];
                    assert_eq!(load(arena, page * page_size() + 2), page as u8);
                }
            });
        }
    });
}

/// Without `/proc/self/mem` only zeroes can be promised.
#[test]
fn templates_need_proc() {
    let name = "templates_need_proc";
    let output = in_child(name, "denied", || {
        deny(&[(libc::SYS_pwrite64, None)], libc::EPERM);
        let error = protected(1 << 30).template(numbered_pages()).reserve().unwrap_err();
        assert_eq!((error.operation(), error.errno()), (Operation::OpenMemory, Some(Errno::EPERM)));
        assert!(error.hint().unwrap().contains("/proc/self/mem"), "{error}");
        let zeroes = protected(1 << 30).reserve().unwrap();
        store(&zeroes, 1 << 29, 1);
        assert_eq!(load(&zeroes, 1 << 28), 0);
    });
    assert_success(&output);
}

/// Touches more lonely pages than there may be mappings: runs are joined.
#[test]
fn without_mappings_runs_are_joined() {
    let name = "without_mappings_runs_are_joined";
    let output = in_child(name, "scattered", || {
        let most: usize =
            fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
        let template = Template::repeat(&0x33u8).unwrap();
        let arena = protected(1 << 40).template(template).reserve().unwrap();
        for page in (0..most * 3).step_by(3) {
            store(&arena, page * page_size(), 1);
        }
        for page in (0..most * 3).step_by(3) {
            assert_eq!(load(&arena, page * page_size()), 1);
            assert_eq!(load(&arena, page * page_size() + 1), 0x33);
        }
        let resident = arena.stats().resident_bytes / page_size();
        assert!(resident > most && resident < 3 * most, "{resident} pages are resident");
    });
    assert_success(&output);
}

#[test]
fn without_a_mapping_for_a_run_it_is_a_violation_that_says_so() {
    let name = "without_a_mapping_for_a_run_it_is_a_violation_that_says_so";
    let output = in_child(name, "scattered", || {
        let template = Template::repeat(&0x33u8).unwrap();
        let arena = protected(1 << 40).template(template).reserve().unwrap();
        for chunk in 0..1 << 19 {
            store(&arena, chunk << 21, 1);
        }
    });
    assert_killed(&output, libc::SIGSEGV);
    assert!(stderr(&output).contains("no mapping, for the page"), "{}", text(&output));
}

/// Code that jumps into an arena dies as it would in any memory that is not executable.
#[test]
fn jumping_into_an_arena_is_death_and_no_loop() {
    let name = "jumping_into_an_arena_is_death_and_no_loop";
    for touched in [false, true] {
        let output = in_child(name, &format!("touched {touched}"), || {
            let arena = protected(1 << 30).reserve().unwrap();
            if touched {
                store(&arena, 0, 0xc3);
            }
            // SAFETY: it is not, and the process dies of it.
            unsafe {
                let code = std::mem::transmute::<*mut u8, extern "C" fn()>(arena.as_ptr());
                code();
            }
        });
        assert_killed(&output, libc::SIGSEGV);
        assert!(!stderr(&output).contains("lacuna"), "{}", text(&output));
    }
}

/// Untouched pages raise signals there too, but they are not ours to answer.
#[test]
fn a_raw_clone_is_told_why_it_dies() {
    let output = in_child("a_raw_clone_is_told_why_it_dies", "fork", || {
        let arena = protected(1 << 30).name("a").template(numbered_pages()).reserve().unwrap();
        store(&arena, 0, 1);
        let touch = || {
            assert_eq!(load(&arena, 0), 1);
            assert!(arena.populate(0..1 << 20).is_err());
            load(&arena, 1 << 20);
        };
        assert_eq!(libc::WTERMSIG(status_of_raw_fork(touch)), libc::SIGSEGV);
        assert_eq!(arena.stats().resident_bytes, page_size());
        assert_eq!(load(&arena, (1 << 20) + 2), 0);
    });
    assert!(output.status.success(), "{}", text(&output));
    let said = stderr(&output);
    assert!(
        said.contains("arena \"a\": read at offset 1048576: this process was forked"),
        "{said}"
    );
}

/// What is present stays; a page that has to be written cannot be.
#[test]
fn a_child_without_a_descriptor_to_spare_has_zeroes_to_promise() {
    let name = "a_child_without_a_descriptor_to_spare_has_zeroes_to_promise";
    let output = in_child(name, "fork", || {
        let numbered = protected(1 << 30).name("n").template(numbered_pages()).reserve().unwrap();
        let zeroes = protected(1 << 30).reserve().unwrap();
        store(&numbered, 0, 1);
        // SAFETY: the limit is valid.
        unsafe {
            libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 0, rlim_max: 99 })
        };
        let status = status_of_fork(|| {
            assert_eq!((load(&numbered, 0), load(&zeroes, 5)), (1, 0));
            store(&zeroes, 1 << 20, 1);
            assert_eq!(numbered.populate(0..1 << 20).unwrap_err().errno(), Some(Errno::EBADF));
            load(&numbered, 1 << 20);
        });
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
        assert_eq!(load(&numbered, (1 << 20) + 2), 0);
    });
    assert!(output.status.success(), "{}", text(&output));
    assert!(stderr(&output).contains("arena \"n\": read at offset 1048576"), "{}", text(&output));
}

#[test]
fn children_have_contents_of_their_own() {
    let name = "children_have_contents_of_their_own";
    let output = in_child(name, "fork", || {
        let arena = protected(1 << 30).template(numbered_pages()).reserve().unwrap();
        store(&arena, 0, 1);
        // SAFETY: the child touches memory and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let right = load(&arena, 0) == 1 && load(&arena, 7 * page_size() + 2) == 7;
            store(&arena, 8 * page_size(), 99);
            store(&arena, 0, 99);
            // SAFETY: ends the child.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut status = 0;
        // SAFETY: the child is ours.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(status, 0);
        assert_eq!((load(&arena, 0), load(&arena, 8 * page_size() + 2)), (1, 8));
        assert_eq!(arena.stats().resident_bytes, 2 * page_size());
    });
    assert_success(&output);
}
