//! Each system call fails with each error number, once and for ever, while arenas and heaps start and
//! while they run, on both backends. Whatever happens: no hang, no panic, no wrong byte, the counters
//! in step once it is over; and what happens is what the table at the end says.
//!
//! ```text
//! RUSTFLAGS="--cfg lacuna_seam" cargo test --test seam -- --nocapture
//! ```

#![cfg(lacuna_seam)]
#![allow(missing_docs, reason = "a test")]

#[path = "seam/expected.rs"]
mod expected;
#[path = "seam/life.rs"]
mod life;
mod support;

use expected::{Outcome, expected};
use lacuna::Errno;
use lacuna::seam::Call;
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use support::{rerun, stderr, stdout, text};

/// What the child is to do: phase, call, error number, times.
const PLAN: &str = "LACUNA_TEST_PLAN";

const ERRNOS: [Errno; 9] = [
    Errno::EAGAIN,
    Errno::ENOMEM,
    Errno::EEXIST,
    Errno::EFAULT,
    Errno::EINVAL,
    Errno::EPERM,
    Errno::EMFILE,
    Errno::ENOENT,
    Errno::EINTR,
];

fn sweep(name: &str, backend: &str) {
    if let Ok(plan) = std::env::var(PLAN) {
        return life::live(&plan);
    }
    let run = |plan: &str| rerun(name, &[(PLAN, plan), ("LACUNA_BACKEND", backend)]);
    let used = life::used(&stdout(&run("none")));
    let mut rows = BTreeMap::new();
    let mut wrong = Vec::new();
    for (phase, call) in used {
        for errno in ERRNOS {
            for times in ["once", "always"] {
                let plan = format!("{phase:?} {call:?} {} {times}", errno as i32);
                let output = run(&plan);
                let outcome = judge(&output);
                if !expected(phase, call, errno, times == "always").contains(&outcome) {
                    wrong.push(format!("{plan}: {outcome:?}\n{}", text(&output)));
                }
                let row = (format!("{phase:?}"), format!("{call:?}"), times, outcome);
                rows.entry(row).or_insert_with(Vec::new).push(errno);
            }
        }
    }
    println!("| phase | call | fails | outcome | with |\n|---|---|---|---|---|");
    for ((phase, call, times, outcome), errnos) in rows {
        println!("| {phase} | {call} | {times} | {outcome:?} | {errnos:?} |");
    }
    assert!(wrong.is_empty(), "{} of them unexpected:\n{}", wrong.len(), wrong.join("\n----\n"));
}

/// What became of a child.
fn judge(output: &Output) -> Outcome {
    let (said, printed) = (stdout(output), stderr(output));
    let is_violation = printed.lines().any(|line| line.starts_with("lacuna: arena "));
    match output.status.signal() {
        Some(libc::SIGBUS | libc::SIGSEGV) if is_violation => Outcome::Violation,
        Some(_) => Outcome::Crash,
        None if !output.status.success() => Outcome::Wrong,
        None if said.contains("error: ") => Outcome::Error,
        None if said.contains("null") => Outcome::Null,
        None => Outcome::Unnoticed,
    }
}

#[test]
fn userfaultfd_meets_each_error() {
    sweep("userfaultfd_meets_each_error", "userfaultfd");
}

#[test]
fn mprotect_meets_each_error() {
    sweep("mprotect_meets_each_error", "mprotect");
}

#[test]
fn calls_are_seen() {
    let _arena = lacuna::Arena::builder(1).reserve().unwrap();
    assert!(lacuna::seam::count(Call::Map) > 0);
}

/// A kernel before 6.7, which knows no WP_ASYNC: handlers take note of writes.
#[test]
fn checkpoints_without_wp_async() {
    use lacuna::{Arena, Backend, ErrorKind, Tracking, seam};
    let child = || {
        seam::fail(Call::Api, Errno::EINVAL, 0, 1);
        let builder = Arena::builder(1 << 22).backend(Backend::Userfaultfd);
        let arena = builder.clone().reserve().unwrap();
        assert_eq!(arena.tracking(), Tracking::Signal);
        support::store(&arena, 5, 1);
        arena.checkpoint().unwrap();
        support::store(&arena, 5, 2);
        support::store(&arena, 1 << 21, 2);
        let page = support::page();
        assert_eq!(arena.written().unwrap(), [0..page, 1 << 21..(1 << 21) + page]);
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.rollback() }.unwrap();
        assert_eq!((support::load(&arena, 5), support::load(&arena, 1 << 21)), (1, 0));
        let arena = builder.tracking(Tracking::Kernel).reserve().unwrap();
        assert_eq!(arena.checkpoint().unwrap_err().kind(), ErrorKind::Unsupported);
    };
    let output = support::in_child("checkpoints_without_wp_async", "child", child);
    support::assert_success(&output);
}

/// What a checkpoint takes fails: it is an error, there is no checkpoint, and no byte is wrong.
#[test]
fn checkpoints_that_fail_leave_none() {
    use lacuna::{Arena, Backend, ErrorKind, Tracking, seam};
    let child = || {
        for tracking in [Tracking::Kernel, Tracking::Signal] {
            for (call, skip) in [
                (Call::Map, 0),
                (Call::Map, 1),
                (Call::WipeOnFork, 0),
                (Call::Register, 0),
                (Call::WriteProtect, 0),
                (Call::WriteProtect, 1),
                (Call::CopyOut, 1),
            ] {
                let builder = Arena::builder(8 << 20).backend(Backend::Userfaultfd);
                let arena = builder.tracking(tracking).reserve().unwrap();
                (0..2048).for_each(|at| support::store(&arena, at * support::page(), 7));
                seam::fail(call, Errno::ENOMEM, skip, 1);
                let result = arena.checkpoint();
                seam::clear();
                if tracking == Tracking::Signal && call == Call::CopyOut {
                    result.unwrap();
                } else {
                    assert_eq!(result.unwrap_err().errno(), Some(Errno::ENOMEM), "{call:?}");
                    assert_eq!(arena.written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
                    assert_eq!(arena.stats().checkpoint_bytes, 0);
                }
                (0..2048).for_each(|at| {
                    assert_eq!(support::load(&arena, at * support::page()), 7);
                    support::store(&arena, at * support::page(), 8);
                });
                arena.checkpoint().unwrap();
                support::store(&arena, 0, 9);
                // SAFETY: nobody has a reference into the arena.
                unsafe { arena.rollback() }.unwrap();
                assert_eq!(support::load(&arena, 0), 8);
                assert_eq!(arena.measure().unwrap().resident_bytes, support::arena_rss(&arena));
            }
        }
    };
    let output = support::in_child("checkpoints_that_fail_leave_none", "child", child);
    support::assert_success(&output);
}

/// Should lifting the protection fail when a checkpoint is forgotten, each page is seen to when it is written:
/// also one that somebody has dropped meanwhile.
#[test]
fn pages_that_stay_protected_can_be_written() {
    use lacuna::{Arena, Backend, Tracking, seam};
    let child = || {
        let builder = Arena::builder(8 << 20).backend(Backend::Userfaultfd);
        let arena = builder.tracking(Tracking::Signal).reserve().unwrap();
        (0..9).for_each(|at| support::store(&arena, at * support::page(), 7));
        arena.checkpoint().unwrap();
        seam::fail(Call::WriteProtect, Errno::ENOMEM, 0, 1);
        arena.forget_checkpoint();
        seam::clear();
        support::drop_behind(&arena, 3 * support::page()..4 * support::page());
        for at in 0..9 {
            support::store(&arena, at * support::page() + 1, 5);
            assert_eq!(support::load(&arena, at * support::page() + 1), 5);
        }
        assert_eq!(support::load(&arena, 2 * support::page()), 7);
    };
    let output = support::in_child("pages_that_stay_protected_can_be_written", "child", child);
    support::assert_success(&output);
}
