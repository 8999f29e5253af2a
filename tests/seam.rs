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
