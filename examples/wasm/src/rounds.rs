//! Requests served by all hosts in turn.

use crate::host::Host;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use wasmtime::Result;

const THREADS: usize = 2;

/// What a host did, in all rounds.
#[derive(Default)]
struct Measured {
    time: Duration,
    /// Of each request, from before its guest was made until it was gone.
    requests: Vec<Duration>,
}

/// Serves requests of that number by several threads, and takes the time of each.
fn serve(host: &Host, requests: std::ops::Range<u64>, measured: &mut Measured) -> Result<()> {
    let next = AtomicU64::new(requests.start);
    let work = || -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        loop {
            let request = next.fetch_add(1, Ordering::Relaxed);
            if request >= requests.end {
                return Ok(times);
            }
            times.push(host.serve(request)?);
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|it| {
            measured.requests.extend(it.join().expect("a thread panicked")?);
            Ok(())
        })
    })
    .map(|()| measured.time += start.elapsed())
}

/// Rounds of requests: in each, every host serves the same. The first round is not counted.
pub fn run(hosts: &[Host], (rounds, requests): (u64, u64)) -> Result<()> {
    let mut measured: Vec<_> = hosts.iter().map(|_| Measured::default()).collect();
    for round in 0..=rounds {
        for (host, measured) in hosts.iter().zip(&mut measured) {
            if round == 1 {
                *measured = Measured::default();
            }
            serve(host, round * requests..(round + 1) * requests, measured)?;
        }
    }
    println!("{:20} {:>10} {:>10} {:>10}", "", "requests/s", "p50", "p99");
    for (host, mut it) in hosts.iter().zip(measured) {
        it.requests.sort_unstable();
        let at = |percent| it.requests[it.requests.len() * percent / 100];
        let rate = it.requests.len() as f64 / it.time.as_secs_f64();
        println!("{:20} {rate:>10.0} {:>10.1?} {:>10.1?}", host.name, at(50), at(99));
    }
    Ok(())
}
