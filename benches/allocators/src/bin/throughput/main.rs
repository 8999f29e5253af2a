//! Allocators side by side: throughput and peak memory, each run in a process of its own, all
//! allocators in turns.
//!
//! ```text
//! cd benches/allocators && cargo run --release             # minutes
//! cd benches/allocators && cargo run --release -- --quick  # seconds
//! ```
//!
//! `larson` and `mstress` are those of malloc-bench-rs, whose mailboxes come from the system's
//! allocator whatever is measured; `shifting` is ours (see `shifting.rs`).

mod report;
mod rivals;
mod shifting;

use report::Table;
use rivals::RIVALS;
use std::process::{Command, ExitCode};

const USAGE: u8 = 2;

/// What is run, by how many threads, and how much of it.
#[derive(Clone, Copy)]
struct Job {
    workload: &'static str,
    threads: usize,
    steps: usize,
}

/// What came of a run.
struct Outcome {
    /// Millions of operations a second.
    speed: f64,
    /// Processor time of the process, its threads and the kernel's work for them, in seconds: unlike
    /// the speed, it does not depend on when threads get a processor.
    processor: f64,
    /// The most memory the process had, in KiB.
    peak: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => compare(1, 11, ""),
        ["--quick"] => compare(10, 3, ""),
        ["--only", workload] => compare(1, 11, workload),
        ["run", rival, workload, threads, steps] => {
            let number = |text: &str| text.parse().expect("a number");
            let speed = rivals::run(rival, workload, number(threads), number(steps));
            println!("{speed} {} {}", processor_seconds(), peak());
        }
        _ => {
            eprintln!("usage: allocators [--quick | --only WORKLOAD]");
            return ExitCode::from(USAGE);
        }
    }
    ExitCode::SUCCESS
}

/// Runs everything, `rounds` times after one that does not count, and prints the tables.
fn compare(share: usize, rounds: usize, only: &str) {
    for threads in [1, 2, 4] {
        for (workload, steps) in
            [("larson", 16_000_000), ("mstress", 16_000_000), ("shifting", 6_000_000)]
        {
            if !workload.contains(only) {
                continue;
            }
            let job = Job { workload, threads, steps: steps / share / threads };
            let mut table = Table::new(RIVALS.len());
            for round in 0..=rounds {
                for turn in 0..RIVALS.len() {
                    // Each round begins with another.
                    let rival = (round + turn) % RIVALS.len();
                    let outcome = run(RIVALS[rival], job);
                    if round > 0 {
                        table.add(rival, outcome);
                    }
                }
            }
            table.print(&format!("{workload}, {threads} threads"), RIVALS);
        }
    }
}

/// One run in a process of its own.
fn run(rival: &str, job: Job) -> Outcome {
    let program = std::env::current_exe().expect("it is running");
    let (threads, steps) = (job.threads.to_string(), job.steps.to_string());
    let output = Command::new(program)
        .args(["run", rival, job.workload, &threads, &steps])
        .output()
        .expect("it can be run again");
    assert!(output.status.success(), "{rival}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("numbers");
    let mut numbers = text.split_whitespace();
    let mut next = || numbers.next().expect("three numbers");
    Outcome {
        speed: next().parse().expect("a speed"),
        processor: next().parse().expect("seconds"),
        peak: next().parse().expect("a size"),
    }
}

/// Processor time of this process, in seconds.
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the time is written.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is a /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
