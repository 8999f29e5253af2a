//! Arenas that are tracked since a checkpoint, in both ways.

use super::{arena_rss, page};
use lacuna::{Arena, ArenaBuilder, Backend, ErrorKind, Tracking};
use std::ops::Range;

/// Both ways to track; what the kernel lacks is said aloud.
pub(crate) fn both(test: impl Fn(Tracking)) {
    for tracking in [Tracking::Kernel, Tracking::Signal] {
        let arena = builder(1, tracking).reserve();
        let kind = match arena {
            Err(error) => panic!("{error}"),
            Ok(arena) => arena.checkpoint().map_err(|error| error.kind()),
        };
        match kind {
            Err(ErrorKind::Unsupported) => {
                eprintln!("NOT RUN: this kernel has no {tracking:?} tracking");
            }
            result => {
                result.unwrap();
                test(tracking);
            }
        }
    }
}

pub(crate) fn builder<'a>(len: usize, tracking: Tracking) -> ArenaBuilder<'a> {
    Arena::builder(len).backend(Backend::Userfaultfd).tracking(tracking)
}

pub(crate) fn rollback(arena: &Arena) {
    // SAFETY: tests hold no references into arenas, and every byte is valid.
    unsafe { arena.rollback() }.unwrap();
}

/// The pages that are said to be written.
pub(crate) fn written(arena: &Arena) -> Vec<usize> {
    let ranges = arena.written().unwrap();
    assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
    let pages = |range: Range<usize>| range.start / page()..range.end / page();
    ranges.into_iter().flat_map(pages).collect()
}

/// The books agree with the kernel.
#[track_caller]
pub(crate) fn assert_measured(arena: &Arena) {
    let before = arena.stats();
    let stats = arena.measure().unwrap();
    assert_eq!(stats.resident_bytes, arena_rss(arena));
    assert!(before.resident_bytes <= stats.resident_bytes);
    assert!(
        before.resident_bytes + before.lent_bytes >= stats.resident_bytes + stats.lent_bytes,
        "{before:?} {stats:?}"
    );
}
