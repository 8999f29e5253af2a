//! Handlers that are installed over lacuna's, and lacuna taking the front again.

#![allow(missing_docs, reason = "a test")]

mod support;

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use support::signals::{
    arena, chain, disposition, ending, install, large_alternate_stack, note, raise, set_action,
    touch, touch_truncated_file,
};
use support::{assert_killed, assert_success, in_child, stderr, store, text};

/// Times that each handler of the test has run.
static FIRST: AtomicUsize = AtomicUsize::new(0);
static SECOND: AtomicUsize = AtomicUsize::new(0);
static BENEATH: AtomicUsize = AtomicUsize::new(0);

/// What the handlers found when they were installed.
static FIRST_FOUND: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
static SECOND_FOUND: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

const FLAGS: libc::c_int = libc::SA_SIGINFO | libc::SA_ONSTACK;

fn count(counter: &AtomicUsize) -> usize {
    counter.load(Ordering::SeqCst)
}

/// Counts, and calls what was found.
fn pass_on(
    counter: &AtomicUsize,
    found: &AtomicPtr<libc::sigaction>,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    assert!(counter.fetch_add(1, Ordering::SeqCst) < 200, "round in circles");
    // SAFETY: stored before the handler could be called, never freed; the arguments are the kernel's.
    unsafe { chain(&*found.load(Ordering::SeqCst), libc::SIGBUS, info, context) };
}

extern "C" fn first(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    pass_on(&FIRST, &FIRST_FOUND, info, context);
}

extern "C" fn second(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    pass_on(&SECOND, &SECOND_FOUND, info, context);
}

extern "C" fn beneath(_: libc::c_int) {
    BENEATH.fetch_add(1, Ordering::SeqCst);
}

fn install_first() {
    roomy();
    let found = install(first as *const () as usize, FLAGS);
    FIRST_FOUND.store(Box::into_raw(Box::new(found)), Ordering::SeqCst);
}

fn install_second() {
    let found = install(second as *const () as usize, FLAGS);
    SECOND_FOUND.store(Box::into_raw(Box::new(found)), Ordering::SeqCst);
}

/// Several handlers are called on top of each other: optimised, they fit the 8 KiB that threads have.
fn roomy() {
    if cfg!(debug_assertions) {
        large_alternate_stack();
    }
}

/// Installs what is called last.
fn install_beneath() {
    roomy();
    install(beneath as *const () as usize, libc::SA_RESTART);
}

#[test]
fn there_is_no_front_before_the_first_arena() {
    assert_success(&in_child("there_is_no_front_before_the_first_arena", "none", || {
        let before = disposition();
        assert!(!lacuna::is_in_front());
        lacuna::take_front().unwrap();
        assert_eq!(disposition(), before);
        let _arena = arena();
        assert!(lacuna::is_in_front());
    }));
}

/// Its faults come to us by way of it, the foreign ones to what was beneath.
#[test]
fn a_later_handler_that_chains_may_stay_in_front() {
    let name = "a_later_handler_that_chains_may_stay_in_front";
    assert_success(&in_child(name, "sent", || {
        install_beneath();
        let arena = arena();
        install_first();
        assert!(!lacuna::is_in_front());
        touch(&arena);
        assert!(count(&FIRST) >= 20);
        assert_eq!(count(&BENEATH), 0);
        let ran = count(&FIRST);
        for times in 1..=30 {
            raise();
            assert_eq!((count(&FIRST), count(&BENEATH)), (ran + times, times));
        }
        assert_eq!(disposition(), first as *const () as usize, "it was displaced");
        let ran = count(&FIRST);
        touch(&arena);
        assert!(count(&FIRST) > ran);
    }));
    let output = in_child(name, "fault", || {
        install(note as *const () as usize, FLAGS);
        let _arena = arena();
        install_first();
        touch_truncated_file();
    });
    assert_eq!(ending(&output), (None, Some(42)), "{}", text(&output));
    // Beneath is Rust's own, which resets the disposition: the process dies.
    let output = in_child(name, "rust", || {
        let _arena = arena();
        install_first();
        touch_truncated_file();
    });
    assert_killed(&output, libc::SIGBUS);
}

#[test]
fn taking_the_front_of_a_handler_that_chains() {
    let name = "taking_the_front_of_a_handler_that_chains";
    assert_success(&in_child(name, "sent", || {
        install_beneath();
        let arena = arena();
        install_first();
        lacuna::take_front().unwrap();
        assert!(lacuna::is_in_front());
        touch(&arena);
        assert_eq!(count(&FIRST), 0);
        for times in 1..=30 {
            raise();
            assert_eq!((count(&FIRST), count(&BENEATH)), (times, times));
        }
        touch(&arena);
        assert_eq!(count(&FIRST), 30);
    }));
    let output = in_child(name, "fault", || {
        install(note as *const () as usize, FLAGS);
        let _arena = arena();
        install_first();
        lacuna::take_front().unwrap();
        touch_truncated_file();
    });
    assert_eq!(ending(&output), (None, Some(42)), "{}", text(&output));
    let output = in_child(name, "rust", || {
        let _arena = arena();
        install_first();
        lacuna::take_front().unwrap();
        touch_truncated_file();
    });
    assert_killed(&output, libc::SIGBUS);
}

#[test]
fn two_that_chain_are_called_in_their_order_and_once_each() {
    let name = "two_that_chain_are_called_in_their_order_and_once_each";
    assert_success(&in_child(name, "two", || {
        install_beneath();
        let arena = arena();
        install_first();
        lacuna::take_front().unwrap();
        install_second();
        lacuna::take_front().unwrap();
        for times in 1..=30 {
            raise();
            assert_eq!((count(&FIRST), count(&SECOND), count(&BENEATH)), (times, times, times));
            touch(&arena);
        }
        assert!(lacuna::is_in_front());
    }));
}

/// Each time it finds ours, saves it, and forgets what it had found before.
#[test]
fn a_handler_that_insists_on_being_in_front_makes_no_circle() {
    let name = "a_handler_that_insists_on_being_in_front_makes_no_circle";
    assert_success(&in_child(name, "insist", || {
        install_beneath();
        let arena = arena();
        for times in 1..=50 {
            install_first();
            if times % 2 == 0 {
                raise();
            }
            lacuna::take_front().unwrap();
            let (ran, beneath) = (count(&FIRST), count(&BENEATH));
            raise();
            assert_eq!((count(&FIRST), count(&BENEATH)), (ran + 1, beneath + 1));
            touch(&arena);
            FIRST.store(0, Ordering::SeqCst);
        }
    }));
    let output = in_child(name, "fault", || {
        let _arena = arena();
        for _ in 0..5 {
            install_first();
            lacuna::take_front().unwrap();
        }
        touch_truncated_file();
    });
    assert_killed(&output, libc::SIGBUS);
}

#[test]
fn two_that_insist_make_no_circle() {
    let name = "two_that_insist_make_no_circle";
    assert_success(&in_child(name, "insist", || {
        install_beneath();
        let arena = arena();
        for _ in 0..20 {
            install_first();
            lacuna::take_front().unwrap();
            install_second();
            lacuna::take_front().unwrap();
        }
        raise();
        assert!(count(&FIRST) <= 2 && count(&SECOND) <= 2);
        assert_eq!(count(&BENEATH), 1);
        touch(&arena);
    }));
}

#[test]
fn a_later_handler_that_does_not_chain_is_put_beneath() {
    let name = "a_later_handler_that_does_not_chain_is_put_beneath";
    let output = in_child(name, "displaced", || {
        let arena = arena();
        install(note as *const () as usize, FLAGS);
        store(&arena, 1 << 22, 1);
    });
    assert_eq!(ending(&output), (None, Some(43)), "{}", text(&output));
    let output = in_child(name, "taken", || {
        let arena = arena();
        install(note as *const () as usize, FLAGS);
        lacuna::take_front().unwrap();
        touch(&arena);
        touch_truncated_file();
    });
    assert_eq!(ending(&output), (None, Some(42)), "{}", text(&output));
}

/// As the kernel does: the default lies beneath from then on.
#[test]
fn a_displaced_handler_that_wanted_to_run_once_runs_once() {
    let name = "a_displaced_handler_that_wanted_to_run_once_runs_once";
    for raises in [1, 2] {
        let output = in_child(name, &format!("{raises}"), || {
            let arena = arena();
            install(beneath as *const () as usize, libc::SA_RESETHAND);
            lacuna::take_front().unwrap();
            touch(&arena);
            (0..raises).for_each(|_| raise());
            assert_eq!(count(&BENEATH), 1);
            touch(&arena);
        });
        let killed = (raises == 2).then_some(libc::SIGBUS);
        assert_eq!(ending(&output), (killed, killed.is_none().then_some(0)), "{}", text(&output));
    }
}

/// The front is taken by the next arena where nobody can mind.
#[test]
fn reserving_undoes_a_reset_and_displaces_nobody() {
    let name = "reserving_undoes_a_reset_and_displaces_nobody";
    for action in [libc::SIG_DFL, libc::SIG_IGN] {
        let output = in_child(name, &format!("{action}"), || {
            let old = arena();
            install(action, 0);
            assert!(!lacuna::is_in_front());
            touch(&arena());
            touch(&old);
            assert!(lacuna::is_in_front());
            if action == libc::SIG_IGN {
                raise();
                touch(&old);
            }
            touch_truncated_file();
        });
        assert_killed(&output, libc::SIGBUS);
        assert_eq!(stderr(&output), "");
    }
    assert_success(&in_child(name, "handler", || {
        let _arena = arena();
        install_first();
        let _other = arena();
        assert!(!lacuna::is_in_front());
        assert_eq!(disposition(), first as *const () as usize);
    }));
}

/// A handler that never returns to us: what we keep about a signal must not outlive it.
#[test]
fn a_handler_that_jumps_out_is_called_again() {
    static TARGET: AtomicPtr<libc::ucontext_t> = AtomicPtr::new(ptr::null_mut());
    extern "C" fn jump(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        FIRST.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the frame that made the context is still there; setcontext leaves this one.
        unsafe { libc::setcontext(TARGET.load(Ordering::SeqCst)) };
    }
    assert_success(&in_child("a_handler_that_jumps_out_is_called_again", "jump", || {
        let arena = arena();
        install(jump as *const () as usize, FLAGS);
        lacuna::take_front().unwrap();
        for times in 1..=50 {
            // SAFETY: zeroes are a valid context, which getcontext overwrites; this frame is there
            // for as long as the handler may jump to it.
            unsafe {
                let mut here: libc::ucontext_t = mem::zeroed();
                TARGET.store(&raw mut here, Ordering::SeqCst);
                libc::getcontext(&raw mut here);
                if count(&FIRST) < times {
                    libc::raise(libc::SIGBUS);
                }
            }
            assert_eq!(count(&FIRST), times);
            touch(&arena);
        }
    }));
}

/// As crash reporters do: everything masked, on the alternate stack, and what was found is restored
/// for what they do not handle, so that the instruction's next fault goes there.
#[test]
fn a_crash_reporter_that_restores_what_it_found_is_gone_afterwards() {
    extern "C" fn report(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        assert!(FIRST.fetch_add(1, Ordering::SeqCst) < 200, "round in circles");
        // SAFETY: stored before the handler could be called, and never freed.
        set_action(unsafe { &*FIRST_FOUND.load(Ordering::SeqCst) });
    }
    fn install_reporter() {
        // SAFETY: zeroes are a valid sigaction, and the mask is its own.
        let mut action: libc::sigaction = unsafe { mem::zeroed() };
        action.sa_sigaction = report as *const () as usize;
        action.sa_flags = FLAGS;
        // SAFETY: as above.
        unsafe { libc::sigfillset(&raw mut action.sa_mask) };
        FIRST_FOUND.store(Box::into_raw(Box::new(set_action(&action))), Ordering::SeqCst);
    }
    let name = "a_crash_reporter_that_restores_what_it_found_is_gone_afterwards";
    for front in [false, true] {
        // In front it takes one of our faults for a crash, and then is gone; beneath, it sees what
        // is foreign only.
        assert_success(&in_child(name, &format!("sent {front}"), || {
            install_beneath();
            let arena = arena();
            install_reporter();
            if front {
                lacuna::take_front().unwrap();
            }
            touch(&arena);
            assert_eq!(count(&FIRST), usize::from(!front));
            (0..3).for_each(|_| raise());
            assert_eq!((count(&FIRST), count(&BENEATH)), if front { (1, 2) } else { (1, 3) });
            assert!(lacuna::is_in_front());
            touch(&arena);
        }));
        let output = in_child(name, &format!("fault {front}"), || {
            let arena = arena();
            install_reporter();
            if front {
                lacuna::take_front().unwrap();
            }
            touch(&arena);
            touch_truncated_file();
        });
        assert_killed(&output, libc::SIGBUS);
    }
}
