//! How many pages one fault resolves.

use super::bits::Snapshot;
use super::tuning::{GROWTH, ROOM_SHARE, STREAM};
use core::ops::Range;

/// How many pages one fault resolves (fault-around).
///
/// More pages a fault make streams cheaper; where accesses are scattered, each page beyond the
/// touched one is memory spent for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Window {
    /// One page where accesses are scattered; next to pages that are present already, as many as
    /// are present there without a gap, so that the window doubles while a stream goes on,
    /// forward or backward, however many streams and threads there are.
    ///
    /// Under a budget, where a page that nobody touches may cost one that somebody does, only runs
    /// of eight pages count as streams, and a window takes at most an eighth of what is left.
    #[default]
    Adaptive,
    /// The block of this many pages that the touched page lies in, blocks counted from the start
    /// of its 2 MiB chunk: at least 1, and never past the chunk.
    Pages(u32),
}

/// What surrounds a faulting page, in pages of its chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Surroundings<'a> {
    /// The pages of the chunk that are present.
    pub(crate) present: &'a Snapshot,
    /// How many pages may be touched: those of the chunk, the reservation, the limit.
    pub(crate) end: usize,
    /// Present pages that end just before the chunk without a gap.
    pub(crate) before: usize,
    /// Present pages that begin just after the chunk without a gap.
    pub(crate) after: usize,
    /// Pages that the budget has left; `None` without a budget.
    pub(crate) room: Option<u64>,
}

impl Window {
    /// The pages to resolve for a fault on the absent page `page`, itself among them.
    pub(crate) fn plan(self, page: usize, around: &Surroundings<'_>) -> Range<usize> {
        let first = around.present.gap_before(page);
        let end = around.present.next_set(page..around.end).max(page.saturating_add(1));
        match self {
            Self::Adaptive => adaptive(page, first..end, around),
            Self::Pages(pages) => {
                let pages = (pages as usize).max(1);
                let block = page.saturating_sub(page.checked_rem(pages).unwrap_or(0));
                block.max(first)..block.saturating_add(pages).min(end)
            }
        }
    }
}

/// The window for a fault on `page` within the absent pages `gap`.
fn adaptive(page: usize, gap: Range<usize>, around: &Surroundings<'_>) -> Range<usize> {
    let forward = match page == gap.start {
        true => run_before(page, around),
        false => 0,
    };
    let backward = match page.saturating_add(1) == gap.end {
        true => run_after(gap.end, around),
        false => 0,
    };
    let pages = affordable(forward.max(backward), around.room);
    if forward >= backward {
        page..page.saturating_add(pages).min(gap.end)
    } else {
        page.saturating_add(1).saturating_sub(pages).max(gap.start)..page.saturating_add(1)
    }
}

/// The window for a run of so many pages.
fn affordable(run: usize, room: Option<u64>) -> usize {
    let pages = match room {
        None => run.saturating_mul(GROWTH),
        Some(_) if run < STREAM => 1,
        Some(room) => run.saturating_mul(GROWTH).min((room / ROOM_SHARE) as usize),
    };
    pages.max(1)
}

/// How many pages are present just before `page`, going on into the chunk before.
fn run_before(page: usize, around: &Surroundings<'_>) -> usize {
    match around.present.run_before(page) {
        0 => page.saturating_add(around.before),
        start => page.saturating_sub(start),
    }
}

/// How many pages are present from `page` on, going on into the chunk after.
fn run_after(page: usize, around: &Surroundings<'_>) -> usize {
    let end = around.present.next_clear(page..around.end);
    let beyond = if end == around.end { around.after } else { 0 };
    end.saturating_sub(page).saturating_add(beyond)
}

#[cfg(test)]
mod tests {
    use super::super::bits::{BITS, PageBits};
    use super::*;
    use proptest::prelude::*;

    fn snapshot(runs: &[Range<usize>]) -> Snapshot {
        // SAFETY: all zeroes is an empty set of bits.
        let bits: PageBits = unsafe { core::mem::zeroed() };
        for run in runs {
            bits.set(run.clone());
        }
        bits.load()
    }

    fn plan(page: usize, present: &[Range<usize>], before: usize, after: usize) -> Range<usize> {
        let present = snapshot(present);
        let around = Surroundings { present: &present, end: BITS, before, after, room: None };
        Window::Adaptive.plan(page, &around)
    }

    #[test]
    fn scattered_touches_get_one_page() {
        assert_eq!(plan(7, &[], 0, 0), 7..8);
        assert_eq!(plan(7, &[0..6, 9..12], 0, 0), 7..8);
        assert_eq!(plan(0, &[], 0, 9), 0..1);
    }

    #[test]
    fn streams_double_forward_and_backward() {
        assert_eq!(plan(1, std::slice::from_ref(&(0..1)), 0, 0), 1..2);
        assert_eq!(plan(8, std::slice::from_ref(&(4..8)), 0, 0), 8..12);
        assert_eq!(plan(0, &[], 512, 0), 0..512);
        assert_eq!(plan(2, std::slice::from_ref(&(0..2)), 30, 0), 2..34);
        assert_eq!(plan(511, &[], 0, 64), 448..512);
        assert_eq!(plan(99, std::slice::from_ref(&(100..104)), 0, 0), 96..100);
        assert_eq!(plan(511, &[], 0, 0), 511..512);
    }

    #[test]
    fn a_budget_makes_windows_careful() {
        let window = |run: usize, room| {
            let present = snapshot(std::slice::from_ref(&(0..run)));
            let around = Surroundings { present: &present, end: BITS, before: 0, after: 0, room };
            Window::Adaptive.plan(run, &around).len()
        };
        assert_eq!((window(7, None), window(7, Some(1 << 20))), (7, 1));
        assert_eq!(
            (window(64, Some(1 << 20)), window(64, Some(100)), window(64, Some(7))),
            (64, 12, 1)
        );
    }

    #[test]
    fn a_fixed_window_is_the_block_around_the_page() {
        let present = snapshot(std::slice::from_ref(&(18..19)));
        let around =
            Surroundings { present: &present, end: 40, before: 0, after: 0, room: Some(0) };
        assert_eq!(Window::Pages(16).plan(17, &around), 16..18);
        assert_eq!(Window::Pages(16).plan(30, &around), 19..32);
        assert_eq!(Window::Pages(16).plan(39, &around), 32..40);
        assert_eq!(Window::Pages(1).plan(39, &around), 39..40);
        assert_eq!(Window::Pages(u32::MAX).plan(17, &around), 0..18);
    }

    proptest! {
        #[test]
        fn plans_hold_the_page_and_nothing_present(
            bits in proptest::collection::vec(any::<bool>(), BITS),
            page in 0..BITS,
            reach in 1..=BITS,
            fixed in proptest::option::of(0u32..600),
            before in 0..600usize,
            after in 0..600usize,
            room in proptest::option::of(0u64..6000),
        ) {
            let end = (page + reach).min(BITS);
            let runs: Vec<_> = (0..BITS).filter(|i| bits[*i] && *i != page).map(|i| i..i + 1).collect();
            let present = snapshot(&runs);
            let around = Surroundings { present: &present, end, before, after, room };
            let window = fixed.map_or(Window::Adaptive, Window::Pages);
            let plan = window.plan(page, &around);
            prop_assert!(plan.contains(&page));
            prop_assert!(plan.end <= end);
            prop_assert_eq!(present.next_set(plan.clone()), plan.end);
            if let Some(pages) = fixed {
                prop_assert!(plan.len() <= pages.max(1) as usize);
            } else if let Some(room) = room {
                prop_assert!(plan.len() as u64 <= (room / 8).max(1));
            }
        }
    }
}
