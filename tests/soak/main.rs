//! Everything at once, for as long as one likes: threads fault, populate, discard, reset, measure and
//! move limits in arenas of every kind, which come and go; processes fork; signals whose handlers touch
//! arenas storm; a heap is used beside them. Every word says where it belongs, so one lost, stale or
//! misplaced page is seen at once. It takes 20 seconds, or `LACUNA_SOAK_SECONDS`; `LACUNA_SOAK_SEED`
//! repeats the choices of a run, though not its interleavings.

#![allow(missing_docs, reason = "a test")]

#[path = "../support/mod.rs"]
mod support;

mod books;
mod forks;
mod heap;
mod plot;
mod storm;
mod tally;
mod words;
mod worker;
mod world;

use books::Books;
use std::time::{Duration, Instant, SystemTime};
use support::{Rng, Watchdog};
use tally::TALLY;
use world::World;

/// How long a mixed world is worked on between two checks, and how often.
const MIXED: Duration = Duration::from_millis(400);
const PHASES: usize = 4;
/// Seconds that a faulting one is; `LACUNA_SOAK_FAULTING` says otherwise, for many faults.
const FAULTING: u64 = 2;
/// Rounds before the books must have settled.
const WARM_UP: usize = 3;

#[test]
fn soak() {
    let seconds = number("LACUNA_SOAK_SECONDS").unwrap_or(20);
    let seed = number("LACUNA_SOAK_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    println!("soak: {seconds} s, seed {seed}");
    let faulting = number("LACUNA_SOAK_FAULTING").unwrap_or(FAULTING);
    storm::prepare();
    let (start, mut rng) = (Instant::now(), Rng(seed));
    let mut settled: Option<Books> = None;
    let mut reported = 0;
    let mut round = 0;
    while start.elapsed() < Duration::from_secs(seconds) || round <= WARM_UP {
        one_round(rng.next(), faulting);
        let books = Books::look();
        match settled {
            Some(before) if round >= WARM_UP => books.check(&before),
            before => settled = Some(before.map_or(books, |before| before.max(books))),
        }
        round += 1;
        if start.elapsed().as_secs() / 60 > reported {
            reported = start.elapsed().as_secs() / 60;
            println!("{}\n  {books:?}", TALLY.report(start.elapsed()));
        }
    }
    println!("{}\n  {:?}, settled at {settled:?}", TALLY.report(start.elapsed()), Books::look());
}

/// A mixed world and a faulting one.
fn one_round(seed: u64, faulting: u64) {
    let _watchdog = Watchdog::new("a round of the soak", 600);
    let mut world = World::mixed(seed);
    (0..PHASES).for_each(|phase| world.mix(MIXED, phase % 2 == 0));
    drop(world);
    World::faulting(seed).fault(Duration::from_secs(faulting));
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}
