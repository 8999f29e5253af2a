//! Signals that are not lacuna's go on exactly as before it was there.

#![allow(missing_docs, reason = "a test")]

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use support::signals::{arena, ending, install, note, raise, touch_truncated_file};
use support::{assert_killed, assert_success, in_child, load, page, stderr, store, text};

/// Times that a handler or action of the test has run.
static RAN: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count(_: libc::c_int) {
    RAN.fetch_add(1, Ordering::SeqCst);
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
            (0..1000).for_each(|index| store(&arena, index * 3 * page(), 1));
            assert_eq!(RAN.load(Ordering::SeqCst), 0);
            raise();
            assert_eq!(RAN.load(Ordering::SeqCst), 1);
            assert!(lacuna::is_in_front(), "our handler was displaced");
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

/// signal-hook-registry's handler is not in front, so it is whoever displaced us that is asked first;
/// one that does not chain is the whole of what is beneath, as it is without lacuna.
#[test]
fn a_handler_over_ours_displaces_registered_actions_as_it_does_without_lacuna() {
    let name = "a_handler_over_ours_displaces_registered_actions_as_it_does_without_lacuna";
    for with in [true, false] {
        let output = in_child(name, &format!("{with}"), || {
            let arena = with.then(arena);
            register();
            install(count as *const () as usize, libc::SA_RESTART);
            lacuna::take_front().unwrap();
            for times in 1..=10 {
                raise();
                assert_eq!(RAN.load(Ordering::SeqCst), times);
                if let Some(arena) = &arena {
                    store(arena, times << 22, 1);
                }
            }
        });
        assert_success(&output);
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
