//! Which pages an image has, and where they lie.

use super::superblock::Superblock;
use super::{Flaw, data_end, place};
use crate::fault::stored::{GROUP, GROUP_SHIFT, Group};

/// The pages of one group that has any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) group: u64,
    pub(crate) pages: Group,
}

/// Bytes of a record: its number, a bit a page, and another.
pub(super) const RECORD: usize = 8 + 2 * GROUP / 8;
/// Bytes of a page's checksum.
pub(super) const SUM: usize = 4;

impl Record {
    pub(super) fn count(&self) -> usize {
        self.pages.present.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// How many pages the group has before page `index`.
    pub(super) fn rank(&self, index: usize) -> usize {
        let whole: u32 =
            self.pages.present[..index / 64].iter().map(|word| word.count_ones()).sum();
        let part = self.pages.present[index / 64] & ((1 << (index % 64)) - 1);
        (whole + part.count_ones()) as usize
    }

    /// Adds page `index`.
    pub(super) fn insert(&mut self, index: usize, second: bool) {
        self.pages.present[index / 64] |= 1 << (index % 64);
        if second {
            self.pages.second[index / 64] |= 1 << (index % 64);
        }
    }

    /// The pages, by number in the arena, and their places.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, bool)> {
        let pages = self.pages;
        let first = self.group << GROUP_SHIFT;
        (0..GROUP).filter_map(move |index| Some((first + index as u64, pages.place(index)?)))
    }
}

pub(super) fn encode(records: &[Record]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(records.len() * RECORD);
    for record in records {
        bytes.extend(record.group.to_le_bytes());
        let words = record.pages.present.iter().chain(&record.pages.second);
        words.for_each(|word| bytes.extend(word.to_le_bytes()));
    }
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Vec<Record> {
    let (records, _) = bytes.as_chunks::<RECORD>();
    let record = |bytes: &[u8; RECORD]| {
        let (words, _) = bytes.as_chunks::<8>();
        let mut words = words.iter().map(|word| u64::from_le_bytes(*word));
        let mut next = || words.next().unwrap_or(0);
        let group = next();
        let mut pages = Group::default();
        pages.present.iter_mut().for_each(|word| *word = next());
        pages.second.iter_mut().for_each(|word| *word = next());
        Record { group, pages }
    };
    records.iter().map(record).collect()
}

/// Checks what checksums do not: nobody may be led out of the file, or out of a table, by an image that
/// somebody made up.
pub(super) fn check(
    superblock: &Superblock,
    records: &[Record],
    page_size: usize,
    len: u64,
) -> Result<(), Flaw> {
    let in_order = records.windows(2).all(|pair| pair[0].group < pair[1].group);
    let sound = |record: &Record| {
        let mut words = record.pages.present.iter().zip(&record.pages.second);
        record.group < superblock.groups
            && words.all(|(present, second)| second & !present == 0)
            && record.count() > 0
    };
    let pages: usize = records.iter().map(Record::count).sum();
    if !in_order || !records.iter().all(sound) || pages as u64 != superblock.pages {
        return Err(Flaw::DAMAGED);
    }
    let Some(last) = records.last() else { return Ok(()) };
    let end = |(page, second)| place(page_size, page, second) + page_size as u64;
    let last_page = last.places().map(|(page, _)| page).last().unwrap_or(0);
    let last_byte = last.places().map(end).max().unwrap_or(0);
    match last_page < superblock.arena_len / page_size as u64 && last_byte <= len {
        true => Ok(()),
        false => Err(Flaw::DAMAGED),
    }
}

/// Where the index ends, if the superblock's numbers make sense.
pub(super) fn index_end(superblock: &Superblock, page_size: usize) -> Option<u64> {
    let map = superblock.records.checked_mul(RECORD as u64)?;
    let sums = superblock.pages.checked_mul(SUM as u64)?;
    let end = superblock.index.checked_add(map)?.checked_add(sums)?;
    let arena = superblock.arena_len;
    let sensible = (1..u64::MAX).contains(&superblock.generation)
        && superblock.index >= data_end(page_size, superblock.groups)?
        && superblock.records <= superblock.groups
        && superblock.pages <= superblock.records.checked_mul(GROUP as u64)?
        && arena > 0
        && arena.is_multiple_of(page_size as u64)
        && arena <= isize::MAX as u64
        && end <= i64::MAX as u64;
    sensible.then_some(end)
}
