//! The pages of an image that an arena was saved to, as the handler sees them: which there are, and
//! in which of its two places in the file each lies.

use super::source::Content;
use core::slice;

/// log2 of the pages that one [`Group`] tells of, whatever their size.
pub(crate) const GROUP_SHIFT: u32 = 9;
/// Pages of a group.
pub(crate) const GROUP: usize = 1 << GROUP_SHIFT;
const WORDS: usize = GROUP / 64;

/// Where the pages of one group are. All zeroes is "none of them is in the image".
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    /// A bit for each page that the image has.
    pub(crate) present: [u64; WORDS],
    /// A bit for each of those that lies in the second of its places.
    pub(crate) second: [u64; WORDS],
}

/// A run of pages, which ends with its group at the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// In the second of their places or in the first; `None`: the image does not have them.
    pub(crate) second: Option<bool>,
    pub(crate) pages: usize,
}

impl Group {
    /// In which of its places page `index` of the group lies.
    pub(crate) fn place(&self, index: usize) -> Option<bool> {
        let bit = |words: &[u64; WORDS]| {
            words.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
        };
        bit(&self.present).then(|| bit(&self.second))
    }

    /// The run of pages of one kind from page `index` of the group on.
    pub(crate) fn run(&self, index: usize) -> Run {
        let second = self.place(index);
        let mut end = index;
        while end < GROUP {
            let word = |words: &[u64; WORDS]| words.get(end / 64).copied().unwrap_or(0);
            let (present, second_place) = (word(&self.present), word(&self.second));
            let same = match second {
                None => !present,
                Some(true) => present & second_place,
                Some(false) => present & !second_place,
            };
            let bit = end % 64;
            let ones = (same >> bit).trailing_ones() as usize;
            end = end.wrapping_add(ones);
            // What was shifted in are zeroes, so a run to the word's end is as long as what was left.
            if ones < 64usize.wrapping_sub(bit) {
                break;
            }
        }
        Run { second, pages: end.wrapping_sub(index) }
    }
}

/// The page of the data region that page `page` of the arena has its first or second place at: each group
/// has its first places side by side, and then its second ones.
pub(crate) const fn place(page: u64, second: bool) -> u64 {
    let group = page >> GROUP_SHIFT;
    let within = page & (GROUP as u64).wrapping_sub(1);
    (group << (GROUP_SHIFT + 1))
        .wrapping_add(if second { GROUP as u64 } else { 0 })
        .wrapping_add(within)
}

/// What the pages contain that the image does not have.
#[derive(Clone, Copy)]
pub(crate) enum Fill {
    Zero,
    /// As in `Source::Repeat`.
    Repeat {
        buffer: *const u8,
        period: usize,
        span: usize,
    },
}

impl Fill {
    /// What up to `pages` pages from `page` on contain. Zeroes may end before the reservation does.
    pub(super) fn at(&self, page: usize, page_shift: u32, pages: usize) -> Content {
        match *self {
            Self::Zero => Content::Hole { pages },
            Self::Repeat { buffer, period, span } => {
                let phase = page.wrapping_shl(page_shift).checked_rem(period).unwrap_or(0);
                Content::Bytes { from: buffer.wrapping_add(phase), pages: span.min(pages) }
            }
        }
    }
}

/// An image.
pub(crate) struct Stored {
    /// The data region, mapped from the file: it may be cut short at any time.
    data: *const u8,
    /// `groups` groups, in memory that the kernel fills by itself.
    table: *const Group,
    groups: usize,
    fill: Fill,
}

// SAFETY: what the pointers lead to belongs to the template, and is never written.
unsafe impl Send for Stored {}
// SAFETY: as above.
unsafe impl Sync for Stored {}

impl Stored {
    /// # Safety
    /// `table` points to `groups` groups, `data` to a mapping of as many times 2 × [`GROUP`] pages, and
    /// the fill to what it says; all of it outlives the value and is not written.
    pub(crate) unsafe fn new(
        data: *const u8,
        table: *const Group,
        groups: usize,
        fill: Fill,
    ) -> Self {
        Self { data, table, groups, fill }
    }

    /// The groups, in order.
    pub(crate) fn groups(&self) -> &[Group] {
        // SAFETY: as `new` was promised.
        unsafe { slice::from_raw_parts(self.table, self.groups) }
    }

    /// In which of its places page `page` lies, if the image has it.
    pub(crate) fn place(&self, page: usize) -> Option<bool> {
        self.groups().get(page >> GROUP_SHIFT)?.place(page & GROUP.wrapping_sub(1))
    }

    /// What page `page` contains, and how many pages after it come from the same place. Not inlined, for
    /// the sake of the handler's stack.
    #[inline(never)]
    pub(crate) fn at(&self, page: usize, page_shift: u32) -> Content {
        let Some(group) = self.groups().get(page >> GROUP_SHIFT) else {
            return match self.fill {
                Fill::Zero => Content::Zero,
                Fill::Repeat { .. } => self.fill.at(page, page_shift, usize::MAX),
            };
        };
        let run = group.run(page & GROUP.wrapping_sub(1));
        match run.second {
            None => self.fill.at(page, page_shift, run.pages),
            Some(second) => {
                let offset = place(page as u64, second).wrapping_shl(page_shift) as usize;
                Content::Bytes { from: self.data.wrapping_add(offset), pages: run.pages }
            }
        }
    }

    /// One that has nothing, for tests of tables.
    #[cfg(test)]
    fn of(groups: &[Group]) -> Self {
        Self {
            data: core::ptr::null(),
            table: groups.as_ptr(),
            groups: groups.len(),
            fill: Fill::Zero,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_kind_changes() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(0x1405_7B7E_F767_814F);
            state >> 33
        };
        for density in 1..8u64 {
            let mut group = Group::default();
            for page in 0..GROUP {
                // Long runs and short ones.
                let repeats = page > 0 && random() % 10 < density;
                let kind = if repeats {
                    group.place(page - 1)
                } else {
                    [None, Some(false), Some(true)][(random() % 3) as usize]
                };
                let bit = 1 << (page % 64);
                if kind.is_some() {
                    group.present[page / 64] |= bit;
                }
                if kind == Some(true) {
                    group.second[page / 64] |= bit;
                }
            }
            for page in 0..GROUP {
                let kind = group.place(page);
                let pages = (page..GROUP).take_while(|it| group.place(*it) == kind).count();
                assert_eq!(group.run(page), Run { second: kind, pages });
            }
            let groups = [Group::default(), group];
            let stored = Stored::of(&groups);
            for page in 0..2 * GROUP {
                let Content::Bytes { from, pages } = stored.at(page, 12) else {
                    assert_eq!(stored.place(page), None);
                    continue;
                };
                let second = stored.place(page).unwrap();
                assert_eq!(from.addr() >> 12, place(page as u64, second) as usize);
                assert!(page % GROUP + pages <= GROUP);
            }
            assert!(matches!(stored.at(2 * GROUP, 12), Content::Zero));
        }
    }
}
