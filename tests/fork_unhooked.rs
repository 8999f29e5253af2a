//! Children that the fork hooks do not know of, that share the memory, or that cannot be armed.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ErrorKind, Heap, OnFork, SparseArray, Template, page_size};
use std::ffi::CStr;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use support::fork::{drop_copy, fork, raw_fork, share, status_of_fork, wait};
use support::heap::{alloc, free, layout};
use support::{
    arena_rss, assert_success, discard, in_child, load, only_userfaultfd, stderr, store, text,
};

const CHUNK: usize = 2 << 20;

fn templated(name: &str) -> Arena {
    let template = Template::repeat(&0x77u8).unwrap();
    Arena::builder(1 << 40).name(name).template(template).reserve().unwrap()
}

/// Asserts that every method that could touch the parent's memory fails, whatever the arena.
fn refuses(arena: &Arena, kind: ErrorKind) {
    // SAFETY: nobody has a reference into the arena.
    let unsafely = unsafe { [arena.discard(0..CHUNK), arena.reset()] };
    let results = [
        arena.populate(0..page_size()),
        arena.populate(CHUNK..2 * CHUNK),
        arena.set_limit(page_size()),
        arena.set_limit(arena.len()),
        arena.measure().map(drop),
        Arena::builder(1 << 30).reserve().map(drop),
        SparseArray::<u8>::zeroed(1 << 30).map(drop),
    ];
    for result in unsafely.into_iter().chain(results) {
        assert_eq!(result.map_err(|error| error.kind()), Err(kind));
    }
}

#[test]
fn a_raw_clone_can_do_nothing_to_its_parent() {
    assert_success(&in_child("a_raw_clone_can_do_nothing_to_its_parent", "fork", || {
        only_userfaultfd();
        let arena = templated("index");
        let plain = Arena::builder(1 << 40).reserve().unwrap();
        let (wiped, forbidden) = (OnFork::Wipe, OnFork::Forbid);
        let others = [wiped, forbidden]
            .map(|policy| Arena::builder(1 << 30).on_fork(policy).reserve().unwrap());
        let heap = support::heap::heap(1 << 30, None);
        let block = alloc(&heap, layout(100));
        let spare = Arena::builder(1 << 30).reserve().unwrap();
        [&arena, &others[0], &others[1]].into_iter().for_each(|arena| store(arena, 0, 1));
        // Chunks that are lent, which lowering the limit and discarding would have recalled.
        (0..4).for_each(|index| store(&plain, CHUNK + index * 50 * page_size(), 9));
        let view = |arena: &Arena| (arena.stats(), arena.populated().collect::<Vec<_>>());
        let before = [&arena, &plain].map(view);
        raw_fork(|| {
            assert_eq!([&arena, &plain].map(view), before);
            for arena in [&arena, &plain, &others[0], &others[1]] {
                refuses(arena, ErrorKind::ForkedWithoutHooks);
            }
            assert_eq!(plain.limit(), plain.len());
            // SAFETY: the other copy is not dropped in this process.
            let refused = Heap::new(unsafe { ptr::read(&raw const spare) }).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ForkedWithoutHooks);
            // What the parent had touched is there, unless it is not to be inherited.
            assert_eq!((load(&plain, CHUNK), load(&others[0], 0), load(&others[1], 0)), (9, 0, 0));
            // This is the documented limit: nothing can notice that this should be 0x77.
            assert_eq!(load(&arena, 1 << 39), 0);
            // A heap is ordinary memory.
            free(&heap, block, layout(100));
            free(&heap, alloc(&heap, layout(3 << 20)), layout(3 << 20));
            // Forking goes on, with hooks, but is no way out.
            fork(|| refuses(&plain, ErrorKind::ForkedWithoutHooks));
            raw_fork(|| refuses(&plain, ErrorKind::ForkedWithoutHooks));
            drop_copy(&heap);
            drop_copy(&others);
        });
        assert_eq!([&arena, &plain].map(view), before);
        assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
        let plain_rss = arena_rss(&plain);
        assert_eq!(plain.measure().unwrap().resident_bytes, plain_rss);
        assert_eq!((load(&arena, 0), load(&arena, 1 << 39), load(&plain, 1 << 39)), (1, 0x77, 0));
        // The parent's children have hooks again.
        fork(|| assert_eq!((load(&arena, 0), load(&arena, 1 << 38)), (1, 0x77)));
    }));
}

/// Locks, pins and chunks may be copied while other threads hold them, who are not there to let go.
#[test]
fn a_raw_clone_under_load_waits_for_nobody() {
    assert_success(&in_child("a_raw_clone_under_load_waits_for_nobody", "fork", || {
        let arena = templated("busy");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (arena, stop) = (&arena, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        let base = thread << 32;
                        (0..64).for_each(|page| store(arena, base + page * page_size(), 1));
                        discard(arena, base..base + 32 * page_size());
                    }
                });
            }
            for round in 0..300 {
                raw_fork(|| {
                    let kind = ErrorKind::ForkedWithoutHooks;
                    // SAFETY: nobody has a reference into the arena.
                    let discarded = unsafe { arena.discard(0..1 << 34) };
                    for result in [discarded, arena.populate(0..CHUNK), arena.set_limit(1 << 30)] {
                        assert_eq!(result.map_err(|error| error.kind()), Err(kind));
                    }
                    if round % 2 == 0 {
                        drop_copy(&arena);
                    }
                });
            }
            stop.store(true, Ordering::Relaxed);
        });
        assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
    }));
}

/// Signals this thread as a fault at `address` would.
fn pretend_fault(address: *mut u8) {
    // SAFETY: zeroes are a valid siginfo, in which a fault's address lies at byte 16; a thread may
    // signal itself with any.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        info.si_signo = libc::SIGBUS;
        info.si_code = libc::BUS_ADRERR;
        (&raw mut info).cast::<*mut u8>().add(2).write(address);
        let thread = libc::syscall(libc::SYS_gettid);
        let result = libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            libc::getpid(),
            thread,
            libc::SIGBUS,
            &raw const info,
        );
        assert_eq!(result, 0);
    }
}

#[test]
fn should_a_raw_clone_have_a_fault_it_is_told_why_it_dies() {
    let name = "should_a_raw_clone_have_a_fault_it_is_told_why_it_dies";
    let output = in_child(name, "fork", || {
        only_userfaultfd();
        let arena = templated("index");
        store(&arena, 0, 1);
        let before = arena.stats();
        raw_fork(|| pretend_fault(arena.as_ptr().wrapping_add(1 << 30)));
        assert_eq!((arena.stats(), arena_rss(&arena)), (before, before.resident_bytes));
    });
    assert!(output.status.success(), "{}", text(&output));
    let said = stderr(&output);
    let end = " at offset 1073741824: this process was forked without the C library's fork hooks \
               (raw clone), so arenas do not work in it\n";
    assert!(said.starts_with("lacuna: arena \"index\": ") && said.ends_with(end), "{said}");
}

#[test]
fn the_errors_say_what_happened() {
    assert_success(&in_child("the_errors_say_what_happened", "fork", || {
        let arena = templated("index");
        raw_fork(|| {
            assert_eq!(
                arena.populate(0..page_size()).unwrap_err().to_string(),
                format!(
                    "populate: {}; use fork(3), or posix_spawn(3), or call exec",
                    "this process was forked without the C library's fork hooks (raw clone), so \
                     arenas do not work in it"
                )
            );
        });
    }));
}

const TRUE: [&CStr; 3] = [c"/bin/sh", c"-c", c"exit 7"];

/// Executes a program whose status is 7.
fn exec() -> i32 {
    let [shell, option, script] = TRUE.map(CStr::as_ptr);
    let arguments = [shell, option, script, ptr::null()];
    // SAFETY: the strings and the arrays end with a null each.
    unsafe { libc::execve(shell, arguments.as_ptr(), [ptr::null()].as_ptr()) };
    1
}

#[test]
fn children_that_share_the_memory_share_the_arenas() {
    assert_success(&in_child("children_that_share_the_memory_share_the_arenas", "fork", || {
        let arena = templated("shared");
        store(&arena, 0, 1);
        // Faults of the child's are resolved, in the one memory that there is.
        let status = share(|| {
            store(&arena, 1 << 30, 2);
            i32::from(load(&arena, 1 << 31)) - 0x77
        });
        assert_eq!(status, 0);
        assert_eq!((load(&arena, 0), load(&arena, 1 << 30)), (1, 2));
        assert_eq!(arena.stats().resident_bytes, 3 * page_size());
        // What vfork(2) is for.
        let status = share(|| {
            store(&arena, 1 << 32, 3);
            exec()
        });
        assert_eq!(libc::WEXITSTATUS(status), 7);
        assert_eq!((load(&arena, 1 << 32), load(&arena, (1 << 32) + CHUNK)), (3, 0x77));
        assert_eq!(arena.stats().resident_bytes, arena_rss(&arena));
    }));
}

#[test]
fn commands_run_while_arenas_live() {
    let arena = templated("index");
    store(&arena, 0, 1);
    for round in 0..20 {
        // posix_spawn(3), which shares the memory.
        assert!(Command::new("true").status().unwrap().success());
        store(&arena, CHUNK * (round + 1), 2);
    }
    let mut pid = 0;
    let [shell, option, script] = TRUE.map(|it| it.as_ptr().cast_mut());
    let arguments = [shell, option, script, ptr::null_mut()];
    // SAFETY: the strings and the arrays end with a null each; nothing else is asked for.
    let result = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            shell,
            ptr::null(),
            ptr::null(),
            arguments.as_ptr(),
            [ptr::null_mut()].as_ptr(),
        )
    };
    assert_eq!((result, libc::WEXITSTATUS(wait(pid))), (0, 7));
    assert_eq!((load(&arena, 0), load(&arena, 1)), (1, 0x77));
}

#[test]
fn threads_that_another_language_makes_are_threads() {
    extern "C" fn run(arena: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the arena outlives the thread.
        let arena = unsafe { &*arena.cast::<Arena>() };
        (0..100).for_each(|page| store(arena, page * page_size(), 5));
        ptr::without_provenance_mut(usize::from(load(arena, 1 << 30)))
    }
    let arena = templated("index");
    let mut thread = 0;
    let mut result = ptr::null_mut();
    // SAFETY: the thread is joined while the arena lives.
    unsafe {
        let argument = ptr::from_ref(&arena).cast_mut().cast();
        assert_eq!(libc::pthread_create(&raw mut thread, ptr::null(), run, argument), 0);
        assert_eq!(libc::pthread_join(thread, &raw mut result), 0);
    }
    assert_eq!((result.addr(), load(&arena, 99 * page_size())), (0x77, 5));
}

/// Sets how many descriptors there may be, and tells how many there might have been.
fn allow_descriptors(count: libc::rlim_t) -> libc::rlim_t {
    // SAFETY: the limits are valid.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        let before = limit.rlim_cur;
        limit.rlim_cur = count;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
        before
    }
}

#[test]
fn a_child_without_a_descriptor_to_spare_loses_its_arenas_and_can_exec() {
    let name = "a_child_without_a_descriptor_to_spare_loses_its_arenas_and_can_exec";
    let run = |role: &str, child: fn(&Arena, &Heap)| {
        let output = in_child(name, role, || {
            only_userfaultfd();
            let arena = templated("index");
            let heap = support::heap::heap(1 << 30, None);
            store(&arena, 0, 1);
            let usual = allow_descriptors(0);
            let status = status_of_fork(|| {
                allow_descriptors(usual);
                child(&arena, &heap);
            });
            allow_descriptors(usual);
            assert_eq!((load(&arena, 0), load(&arena, 1 << 30)), (1, 0x77));
            fork(|| assert_eq!((load(&arena, 0), load(&arena, 1 << 30)), (1, 0x77)));
            std::process::exit(match libc::WIFSIGNALED(status) {
                true => 100 + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            });
        });
        assert_eq!(
            stderr(&output),
            "lacuna: no userfaultfd in a forked child: its arenas cannot be accessed\n"
        );
        output.status.code().unwrap()
    };
    assert_eq!(run("touch", |arena, _| _ = load(arena, 0)), 100 + libc::SIGSEGV);
    let exec = |_: &Arena, _: &Heap| assert_eq!(exec(), 0);
    assert_eq!(run("exec", exec), 7);
    let methods = |arena: &Arena, heap: &Heap| {
        refuses(arena, ErrorKind::NotRearmed);
        // Its children are no better off, but there is no second message.
        fork(|| refuses(arena, ErrorKind::NotRearmed));
        raw_fork(|| refuses(arena, ErrorKind::NotRearmed));
        free(heap, alloc(heap, layout(5000)), layout(5000));
        drop_copy(arena);
    };
    assert_eq!(run("methods", methods), 0);
}
