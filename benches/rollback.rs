//! Coming back to a checkpoint: some pages of memory that is all present are written, and restored.

mod common;

use common::rivals::rollback::{BYTE, Make, all};
use common::statistics::Random;
use common::{Contestant, MIB, Sample, Session, page};
use std::time::{Duration, Instant};

/// How many pages each round writes.
const WRITTEN: usize = 64;

/// Which pages a round writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// The same each time.
    Same,
    /// Others each time.
    Random,
}

fn main() {
    Session::run(|session| {
        for pages in [Pages::Same, Pages::Random] {
            for cycle in [true, false] {
                race(session, pages, cycle);
            }
        }
    });
}

fn race(session: &mut Session, pages: Pages, cycle: bool) {
    let len = session.mode().pick(256 * MIB, 64 * MIB, 4 * MIB);
    let rounds = session.mode().pick(200, 50, 4);
    let title = format!(
        "{} of {WRITTEN} written pages of {} MiB, {}",
        if cycle { "writing and rollback" } else { "rollback alone" },
        len / MIB,
        if pages == Pages::Same { "the same each round" } else { "others each round" },
    );
    let contestant = |(name, make): (&'static str, Make)| {
        let mut random = Random(1);
        let mut places = draw(&mut random, len);
        let mut memory = None;
        Contestant::new(name, move || {
            // Made when it is its turn: memory that nobody has asked for is not made.
            let memory = memory.get_or_insert_with(|| make(len));
            let mut time = Duration::ZERO;
            for _ in 0..rounds {
                if pages == Pages::Random {
                    places = draw(&mut random, len);
                }
                memory.prepare();
                let start = Instant::now();
                write(memory.base(), &places);
                let written = Instant::now();
                memory.rewind();
                time += if cycle { start.elapsed() } else { written.elapsed() };
            }
            // Once: reading maps pages of the file that is mapped.
            check(memory.base(), &places);
            Sample::timed(time, rounds)
        })
    };
    session.race(&title, "round", all().into_iter().map(contestant).collect());
}

/// Offsets of pages, some of which may be the same.
fn draw(random: &mut Random, len: usize) -> Vec<usize> {
    (0..WRITTEN).map(|_| random.below(len / page()) * page()).collect()
}

fn write(base: *mut u8, places: &[usize]) {
    for place in places {
        // SAFETY: the memory is so long, and the caller's alone.
        unsafe { base.add(*place).write_volatile(BYTE + 1) };
    }
}

fn check(base: *mut u8, places: &[usize]) {
    for place in places {
        // SAFETY: as above.
        assert_eq!(unsafe { base.add(*place).read_volatile() }, BYTE);
    }
}
