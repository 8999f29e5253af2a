//! Instances of one image: acquired, written here and there, and brought back to the image.

mod common;

use common::memory::{Mapping, memfd};
use common::statistics::Random;
use common::{Contestant, MIB, Sample, Session, page};
use lacuna::{Arena, Backend, Pool, Template};
use std::time::{Duration, Instant};

#[path = "pool/tracked.rs"]
mod tracked;

use tracked::Tracked;

/// Bytes of the image, and how many of its pages each round writes.
const IMAGE: usize = 16 * MIB;
const WRITTEN: usize = 32;

/// Which pages a round writes.
#[derive(Clone, Copy)]
enum Pages {
    /// The same ones each time, spread over the image.
    Same,
    /// Others each time.
    Random,
}

fn main() {
    let image = vec![7u8; IMAGE];
    Session::run(|session| {
        for (pages, which) in
            [(Pages::Same, "the same 32 pages"), (Pages::Random, "32 random pages")]
        {
            for threads in [1, 2] {
                rounds(session, &image, pages, threads, which);
            }
        }
    });
}

/// Acquires, writes and releases, over and over, in each of some threads.
fn rounds(session: &mut Session, image: &[u8], pages: Pages, threads: usize, which: &str) {
    let rounds = session.mode().pick(400, 100, 4);
    let s = if threads == 1 { "" } else { "s" };
    let title = format!("acquire, write {which} of 16 MiB, release: {threads} thread{s}");
    let file = memfd(image);
    let mappings: Vec<_> = (0..threads).map(|_| Mapping::private(&file)).collect();
    let mut tracked: Vec<_> = (0..threads).map(|_| Tracked::new(image)).collect();
    let template = Template::bytes(image).and_then(Template::shared).expect("there is memory");
    let pool = |keep: usize| {
        let builder = Pool::builder(template.clone(), IMAGE).instances(threads).keep_resident(keep);
        builder.build().expect("it can be made")
    };
    let ours = |pool: Pool| {
        move || {
            let seconds = on_threads(vec![&pool; threads], |pool, random| {
                for _ in 0..rounds {
                    let instance = pool.acquire().expect("one for each thread");
                    write_some(instance.as_ptr(), pages, random);
                    instance.release().expect("nothing is locked");
                }
            });
            Sample::timed(seconds, rounds * threads)
        }
    };
    let memfd = || {
        let time = on_threads(mappings.iter().collect(), |mapping: &Mapping, random| {
            for _ in 0..rounds {
                write_some(mapping.base(), pages, random);
                mapping.advise(libc::MADV_DONTNEED);
            }
        });
        Sample::timed(time, rounds * threads)
    };
    let by_scan = || {
        let time = on_threads(tracked.iter_mut().collect(), |tracked: &mut Tracked, random| {
            for _ in 0..rounds {
                write_some(tracked.base(), pages, random);
                tracked.restore();
            }
        });
        Sample::timed(time, rounds * threads)
    };
    let mut arenas: Vec<_> = (0..threads).map(|_| remembering(image)).collect();
    let by_rollback = || {
        let time = on_threads(arenas.iter_mut().collect(), |arena: &mut Arena, random| {
            for _ in 0..rounds {
                write_some(arena.as_ptr(), pages, random);
                // SAFETY: the arena is this thread's, and nobody has a reference into it.
                unsafe { arena.rollback() }.expect("there is a checkpoint");
            }
        });
        Sample::timed(time, rounds * threads)
    };
    session.race(
        &title,
        "round",
        vec![
            Contestant::new("memfd mapped privately, MADV_DONTNEED", memfd),
            Contestant::new("PAGEMAP_SCAN with WP_ASYNC, all of it resident", by_scan),
            Contestant::new("lacuna::Pool", ours(pool(MIB))),
            Contestant::new("lacuna::Pool, keep_resident(0)", ours(pool(0))),
            Contestant::new("lacuna::Arena::rollback, all of it resident", by_rollback),
        ],
    );
}

/// An arena that holds the image, and comes back to it by its checkpoint.
fn remembering(image: &[u8]) -> Arena {
    // The rivals have small pages.
    let builder = Arena::builder(IMAGE).backend(Backend::Userfaultfd).huge_pages(false);
    let template = Template::bytes(image).expect("there is memory");
    let arena = builder.template(template).reserve().expect("userfaultfd is to be had");
    arena.populate(0..IMAGE).expect("there is memory");
    arena.checkpoint().expect("the kernel has write protection");
    arena
}

/// Runs `work` in a thread for each of `parts`, and tells how long the longest took.
fn on_threads<P: Send>(parts: Vec<P>, work: impl Fn(P, &mut Random) + Sync) -> Duration {
    let barrier = std::sync::Barrier::new(parts.len());
    std::thread::scope(|scope| {
        let (work, barrier) = (&work, &barrier);
        let run = |(seed, part)| {
            scope.spawn(move || {
                let mut random = Random(seed as u64);
                barrier.wait();
                let start = Instant::now();
                work(part, &mut random);
                start.elapsed()
            })
        };
        let threads: Vec<_> = parts.into_iter().enumerate().map(run).collect();
        threads
            .into_iter()
            .map(|it| it.join().expect("it does not panic"))
            .max()
            .unwrap_or_default()
    })
}

/// Writes to some pages of the image.
fn write_some(base: *mut u8, pages: Pages, random: &mut Random) {
    for index in 0..WRITTEN {
        let offset = match pages {
            Pages::Same => index * (IMAGE / WRITTEN),
            Pages::Random => random.below(IMAGE / page()) * page(),
        };
        // SAFETY: the image is so long, and the caller's alone.
        unsafe { base.add(offset).write_volatile(2) };
    }
}
