//! Memory that grows in steps of 64 KiB, as a Wasm instance's does, by one thread and by two at once.

mod common;

use common::memory::Mapping;
use common::{Contestant, Sample, Session};
use lacuna::Arena;
use std::time::Instant;

const STEP: usize = 64 << 10;

fn main() {
    Session::run(|session| {
        let steps = session.mode().pick(100_000, 10_000, 100);
        for threads in [1, 2] {
            session.race(
                &format!("growing by 64 KiB, {threads} threads"),
                "step",
                vec![
                    Contestant::new("mprotect", move || together(threads, steps, mprotect)),
                    Contestant::new("lacuna, set_limit", move || {
                        together(threads, steps, set_limit)
                    }),
                ],
            );
        }
    });
}

/// Has each thread grow memory of its own by so many steps.
fn together(threads: usize, steps: usize, grow: fn(usize)) -> Sample {
    let start = Instant::now();
    std::thread::scope(|scope| {
        (0..threads).for_each(|_| drop(scope.spawn(|| grow(steps))));
    });
    Sample::timed(start.elapsed(), threads * steps)
}

fn mprotect(steps: usize) {
    let memory = Mapping::new(steps * STEP, libc::PROT_NONE, libc::MADV_NOHUGEPAGE);
    for step in 0..steps {
        memory.protect(step * STEP..(step + 1) * STEP, libc::PROT_READ | libc::PROT_WRITE);
    }
}

fn set_limit(steps: usize) {
    let memory = Arena::builder(steps * STEP).limit(0).reserve().expect("it can be reserved");
    for step in 1..=steps {
        memory.set_limit(step * STEP).expect("the limit lies within the arena");
    }
}
