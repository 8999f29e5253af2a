//! Signals that are not lacuna's go on exactly as before it was there.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::Arena;
use std::fs::File;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{assert_killed, assert_success, file_of, in_child, load, page, stderr, store, text};

/// Times that a handler or action of the test has run, and the address that it should see.
static RAN: AtomicUsize = AtomicUsize::new(0);
static SEEN: AtomicUsize = AtomicUsize::new(0);

fn arena() -> Arena {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    store(&arena, 0, 1);
    arena
}

/// Touches what lies behind the end of a file that is mapped.
fn touch_truncated_file() {
    let file: File = file_of(&vec![1; 2 * page()]);
    // SAFETY: a new mapping; it is read once, which is the point.
    unsafe {
        let map = libc::mmap(
            ptr::null_mut(),
            2 * page(),
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        file.set_len(page() as u64).unwrap();
        SEEN.store(map.addr() + page() + 5, Ordering::SeqCst);
        map.cast::<u8>().add(page() + 5).read_volatile();
    }
}

fn raise() {
    // SAFETY: raising a signal has no preconditions.
    assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
}

fn disposition() -> usize {
    // SAFETY: zeroes are a valid sigaction.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action), 0);
        action.sa_sigaction
    }
}

/// Installs a handler as a C program would.
fn install(handler: usize, flags: libc::c_int) {
    // SAFETY: zeroes are a valid sigaction; the handler has the type that its flags say.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = handler;
        action.sa_flags = flags;
        assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()), 0);
    }
}

extern "C" fn count(_: libc::c_int) {
    RAN.fetch_add(1, Ordering::SeqCst);
}

/// Notes the address and ends the process, since returning would only raise the signal again.
extern "C" fn note(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; the process ends without running anything.
    unsafe {
        let address = (*info).si_addr().addr();
        libc::_exit(if address == SEEN.load(Ordering::SeqCst) { 42 } else { 43 });
    }
}

/// How a child ended: by which signal, or with which status.
fn ending(output: &Output) -> (Option<i32>, Option<i32>) {
    (output.status.signal(), output.status.code())
}

#[test]
fn a_truncated_file_still_kills() {
    let name = "a_truncated_file_still_kills";
    let output = in_child(name, "rust", || {
        let _arena = arena();
        touch_truncated_file();
    });
    assert_killed(&output, libc::SIGBUS);
    let output = in_child(name, "default", || {
        install(libc::SIG_DFL, 0);
        let _arena = arena();
        touch_truncated_file();
    });
    assert_killed(&output, libc::SIGBUS);
    let output = in_child(name, "ignored", || {
        install(libc::SIG_IGN, 0);
        let _arena = arena();
        touch_truncated_file();
    });
    assert_killed(&output, libc::SIGBUS);
}

#[test]
fn a_handler_that_was_there_first_gets_what_is_foreign() {
    let name = "a_handler_that_was_there_first_gets_what_is_foreign";
    let output = in_child(name, "fault", || {
        install(note as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK);
        let arena = arena();
        (0..100).for_each(|index| store(&arena, index * page(), 1));
        assert_eq!(RAN.load(Ordering::SeqCst), 0);
        touch_truncated_file();
    });
    assert_eq!(ending(&output), (None, Some(42)), "{}", text(&output));
    assert_success(&in_child(name, "one argument", || {
        install(count as *const () as usize, 0);
        let arena = arena();
        (1..=5).for_each(|times| {
            raise();
            assert_eq!(RAN.load(Ordering::SeqCst), times);
            store(&arena, times * 10 * page(), 1);
        });
    }));
    assert_success(&in_child(name, "once", || {
        install(count as *const () as usize, libc::SA_RESETHAND);
        let _arena = arena();
        raise();
        assert_eq!(RAN.load(Ordering::SeqCst), 1);
    }));
    let output = in_child(name, "twice", || {
        install(count as *const () as usize, libc::SA_RESETHAND);
        let _arena = arena();
        raise();
        raise();
    });
    assert_killed(&output, libc::SIGBUS);
}

#[test]
fn sent_signals_end_as_they_do_without_lacuna() {
    let name = "sent_signals_end_as_they_do_without_lacuna";
    for raises in 0..3 {
        for action in [false, true] {
            let run = |with: bool| {
                let role = format!("{raises} {action} {with}");
                let output = in_child(name, &role, || {
                    let arena = with.then(arena);
                    if action {
                        register();
                    }
                    (0..raises).for_each(|_| raise());
                    if let Some(arena) = arena {
                        store(&arena, 9 * page(), 1);
                        assert_eq!(load(&arena, 9 * page()), 1);
                    }
                    println!("ran {}", RAN.load(Ordering::SeqCst));
                });
                let ran = support::stdout(&output).contains("ran 1");
                (ending(&output), ran)
            };
            assert_eq!(run(false), run(true), "{raises} signals, an action: {action}");
        }
    }
}

/// Has signal-hook-registry run an action.
fn register() {
    let action = || {
        RAN.fetch_add(1, Ordering::SeqCst);
    };
    // SAFETY: the action only adds to an atomic.
    unsafe { signal_hook_registry::register(libc::SIGBUS, action) }.unwrap();
}

#[test]
fn registered_actions_run_for_foreign_signals_only() {
    let name = "registered_actions_run_for_foreign_signals_only";
    for before in [true, false] {
        assert_success(&in_child(name, &format!("before {before}"), || {
            if before {
                register();
            }
            let arena = arena();
            if !before {
                register();
            }
            let front = disposition();
            (0..1000).for_each(|index| store(&arena, index * 3 * page(), 1));
            assert_eq!(RAN.load(Ordering::SeqCst), 0);
            raise();
            assert_eq!(RAN.load(Ordering::SeqCst), 1);
            assert_eq!(disposition(), front, "our handler was displaced");
            (0..1000).for_each(|index| store(&arena, (1 << 28) + index * 3 * page(), 1));
            assert_eq!(RAN.load(Ordering::SeqCst), 1);
        }));
        let output = in_child(name, &format!("fault {before}"), || {
            if before {
                register();
            }
            let _arena = arena();
            if !before {
                register();
            }
            touch_truncated_file();
        });
        assert_killed(&output, libc::SIGBUS);
    }
}

#[test]
fn rust_still_reports_stack_overflow() {
    #[expect(unconditional_recursion, reason = "the stack is to overflow")]
    fn recurse(depth: usize) -> usize {
        std::hint::black_box(recurse(std::hint::black_box(depth) + 1)) + 1
    }
    let output = in_child("rust_still_reports_stack_overflow", "thread", || {
        let _arena = arena();
        std::thread::spawn(|| recurse(0)).join().unwrap();
    });
    assert!(stderr(&output).contains("has overflowed its stack"), "{}", text(&output));
    assert_killed(&output, libc::SIGABRT);
}

#[test]
fn errno_survives_faults() {
    let arena = arena();
    for index in 0..1000 {
        nix::errno::Errno::from_raw(77).set();
        store(&arena, (1 << 20) + index * 7 * page(), 1);
        assert_eq!(nix::errno::Errno::last_raw(), 77);
    }
}

#[test]
fn faults_inside_other_handlers_are_resolved() {
    static ADDRESS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn touch(_: libc::c_int) {
        let address = ADDRESS.fetch_add(5 * 4096, Ordering::SeqCst);
        // SAFETY: the address lies in an arena that lives.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    }
    let arena = arena();
    ADDRESS.store(arena.as_ptr().expose_provenance() + (1 << 21), Ordering::SeqCst);
    // SAFETY: zeroes are a valid sigaction; the handler writes to an arena.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = touch as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
        (0..50).for_each(|_| assert_eq!(libc::raise(libc::SIGUSR1), 0));
    }
    assert!(arena.stats().faults >= 1);
}

/// A timer's handler touches the chunk that the interrupted thread is filling, discarding or lending.
#[test]
fn handlers_that_touch_what_is_being_filled_do_not_wait_for_themselves() {
    static BASE: AtomicUsize = AtomicUsize::new(0);
    /// Where the interrupted thread is.
    static AT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn touch(_: libc::c_int) {
        let ahead = RAN.fetch_add(1, Ordering::Relaxed) % 7 * 3 * 4096;
        let address = BASE.load(Ordering::Relaxed) + AT.load(Ordering::Relaxed) + ahead;
        // SAFETY: the address lies in an arena that lives.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    }
    let name = "handlers_that_touch_what_is_being_filled_do_not_wait_for_themselves";
    assert_success(&in_child(name, "timer", || {
        let arena = Arena::builder(1 << 30).reserve().unwrap();
        BASE.store(arena.as_ptr().expose_provenance(), Ordering::Relaxed);
        // SAFETY: zeroes are a valid sigaction and timer; the handler writes to an arena.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = touch as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut());
            let every = libc::timeval { tv_sec: 0, tv_usec: 150 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()), 0);
        }
        for round in 0..3 {
            for offset in (0..256 << 20).step_by(page()) {
                AT.store(offset, Ordering::Relaxed);
                store(&arena, offset, 1);
            }
            if round == 1 {
                arena.populate(256 << 20..512 << 20).unwrap();
            }
            arena.measure().unwrap();
            support::discard(&arena, 0..512 << 20);
        }
        assert!(RAN.load(Ordering::Relaxed) > 100, "the timer did not fire");
        // The timer goes on until the process has ended, and `std::process::exit` would unmap the
        // alternate stack of the main thread, which it may interrupt.
        // SAFETY: ends the process without running anything.
        unsafe { libc::_exit(0) };
    }));
}

/// A thread as C makes it: without an alternate stack.
#[test]
fn threads_without_an_alternate_stack_work() {
    extern "C" fn run(arena: *mut libc::c_void) -> *mut libc::c_void {
        // SAFETY: the arena outlives the thread, which is joined.
        let arena = unsafe { &*arena.cast::<Arena>() };
        (0..100).for_each(|index| store(arena, (1 << 24) + index * 9 * page(), 1));
        ptr::null_mut()
    }
    let arena = arena();
    // SAFETY: the thread gets a pointer to the arena and is joined before that goes.
    unsafe {
        let mut thread = mem::zeroed();
        let argument = ptr::from_ref(&arena).cast_mut().cast();
        assert_eq!(libc::pthread_create(&raw mut thread, ptr::null(), run, argument), 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
    }
    assert_eq!(load(&arena, 1 << 24), 1);
}
