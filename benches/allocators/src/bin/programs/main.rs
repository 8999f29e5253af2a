//! Code as people write it, with each allocator as the global one: wall clock and peak memory, each run
//! in a process of its own, all allocators in turns.
//!
//! ```text
//! cd benches/allocators && cargo run --release --bin programs             # minutes
//! cd benches/allocators && cargo run --release --bin programs -- --quick  # seconds
//! ```

mod jobs;
mod switch;

use std::process::{Command, ExitCode};
use std::time::Instant;
use switch::{Switch, VARIABLE};

#[global_allocator]
static GLOBAL: Switch = Switch::new();

const USAGE: u8 = 2;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => compare(11, 2),
        ["--quick"] => compare(3, 10),
        ["run", job, share] => {
            let share = share.parse().expect("a number");
            let (_, run) = jobs::ALL.iter().find(|(name, _)| *name == job).expect("a job");
            let start = Instant::now();
            run(share);
            println!("{} {}", start.elapsed().as_secs_f64(), peak());
        }
        _ => {
            eprintln!("usage: programs [--quick]");
            return ExitCode::from(USAGE);
        }
    }
    ExitCode::SUCCESS
}

/// Runs each job `rounds` times with each allocator, after one round that does not count.
fn compare(rounds: usize, share: usize) {
    for (job, _) in jobs::ALL {
        let mut times = vec![Vec::new(); switch::NAMES.len()];
        let mut peaks = vec![Vec::new(); switch::NAMES.len()];
        for round in 0..=rounds {
            for turn in 0..switch::NAMES.len() {
                let rival = (round + turn) % switch::NAMES.len();
                let (time, peak) = run(switch::NAMES[rival], job, share);
                if round > 0 {
                    times[rival].push(time);
                    peaks[rival].push(peak);
                }
            }
        }
        println!(
            "\n{job}\n{:>9} {:>9} {:>9} {:>9}  rival",
            "seconds", "time", "peak MiB", "memory"
        );
        // Round by round, so that what slows the machine down slows both.
        let pairs = |rival: usize| times[0].iter().zip(&times[rival]).map(|(a, b)| a / b).collect();
        for (rival, name) in switch::NAMES.iter().enumerate() {
            println!(
                "{:>9.3} {:>8.2}x {:>9.1} {:>8.2}x  {name}",
                median(times[rival].clone()),
                median(pairs(rival)),
                median(peaks[rival].clone()) / 1024.0,
                median(peaks[0].clone()) / median(peaks[rival].clone()),
            );
        }
    }
}

/// Seconds, and KiB at most, of one run in a process of its own.
fn run(rival: &str, job: &str, share: usize) -> (f64, f64) {
    let program = std::env::current_exe().expect("it is running");
    let share = share.to_string();
    let output = Command::new(program)
        .args(["run", job, &share])
        .env(VARIABLE, rival)
        .output()
        .expect("it can be run again");
    assert!(output.status.success(), "{rival}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("numbers");
    let (time, peak) = text.trim().split_once(' ').expect("two numbers");
    (time.parse().expect("seconds"), peak.parse().expect("a size"))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The most memory that this process had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("there is a /proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is told");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
