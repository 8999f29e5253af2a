//! First touches here and there: what a window cannot help. How samples are taken and checked is told
//! in `first_touch.rs`.
//!
//! ```text
//! cargo bench --bench scattered                # minutes
//! cargo bench --bench scattered -- --quick     # seconds
//! ```

mod common;

use common::statistics::Random;
use common::work::{Access, Content, Pattern, Work};
use common::{GIB, MIB, Session, page, rivals};

/// Pages of a 2 MiB chunk.
fn chunk() -> usize {
    2 * MIB / page()
}

fn main() {
    Session::run(|session| {
        let len = session.mode().pick(GIB, 128 * MIB, 16 * MIB);
        let chunks = session.mode().pick(100_000, 5_000, 50);
        let repeat = Content::Repeat(0xDEAD_BEEF);
        let work = |len, content, pages, tight| Work {
            len,
            content,
            access: Access::Write,
            pattern: Pattern::Pages(pages),
            tight,
        };
        let reads = |work: Work| Work { access: Access::Read, ..work };
        for (title, work) in [
            (
                "one write in each 2 MiB, zeroes",
                work(chunks * 2 * MIB, Content::Zero, each_chunk(chunks), false),
            ),
            (
                "one write in each 2 MiB, template",
                work(chunks * 2 * MIB, repeat, each_chunk(chunks), false),
            ),
            (
                "one read in each 2 MiB, zeroes",
                reads(work(chunks * 2 * MIB, Content::Zero, each_chunk(chunks), false)),
            ),
            (
                "random first writes to 10 % of the pages, zeroes",
                work(len, Content::Zero, tenth(len), false),
            ),
            (
                "random first writes to 10 % of the pages, template",
                work(len, repeat, tenth(len), false),
            ),
            (
                "random first writes to 10 % of the pages, tight budget",
                work(len, Content::Zero, tenth(len), true),
            ),
            (
                "records of 16 KiB at each 64 KiB, in order, zeroes",
                work(len, Content::Zero, records(len), false),
            ),
        ] {
            // Huge pages would take two hundred gibibytes where each is touched once.
            let dense = work.len / page() / work.touches() < chunk();
            let rivals: Vec<_> = rivals::scattered()
                .into_iter()
                .filter(|rival| dense || !(rival.is_huge() || rival.needs_mappings()))
                .collect();
            let contestants = rivals.iter().map(|rival| work.contestant(rival)).collect();
            session.race(title, "page", contestants);
        }
    });
}

/// A page of each chunk, each another one.
fn each_chunk(chunks: usize) -> Vec<u32> {
    let mut random = Random(7);
    (0..chunks).map(|index| (index * chunk() + random.below(chunk())) as u32).collect()
}

/// A tenth of the pages, in random order, none twice.
fn tenth(len: usize) -> Vec<u32> {
    let mut pages: Vec<u32> = (0..(len / page()) as u32).collect();
    Random(3).shuffle(&mut pages);
    pages.truncate(pages.len() / 10);
    pages
}

/// The first four of each sixteen pages.
fn records(len: usize) -> Vec<u32> {
    (0..(len / page()) as u32).filter(|page| page % 16 < 4).collect()
}
