//! Writing an image: all of it, or what has changed since the last. See the order of things in the
//! module's head.

use super::load::{Image, load, sums};
use super::map::{self, RECORD, Record};
use super::superblock::{SUPERBLOCK, Superblock};
use super::{Flaw, Storage, data_end, page_sum, place, read_exact};
use crate::fault::stored::{GROUP, GROUP_SHIFT, Group};
use nix::errno::Errno;

/// Bytes that are gathered before they are written.
const BATCH: usize = 1 << 20;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// Pages, because they are new or have changed.
    pub(crate) pages: u64,
    /// Pages that the image has.
    pub(crate) total: u64,
    pub(crate) generation: u64,
}

/// A new image on its way into `storage`, which has another or none. Until it is committed, the other one is
/// there.
pub(crate) struct Update<'a, S> {
    storage: &'a S,
    page_size: usize,
    old: Old,
    /// Groups that the data region is to have room for.
    groups: u64,
    fill: Pattern,
    records: Vec<Record>,
    sums: Vec<u32>,
    batch: Batch,
    /// Whether something has been written, and so everything been done that comes before.
    begun: bool,
    pages_written: u64,
}

impl<'a, S: Storage> Update<'a, S> {
    /// Begins an image of pages before page `end`, where absent ones contain `fill`, over and over.
    pub(crate) fn begin(
        storage: &'a S,
        page_size: usize,
        end: u64,
        fill: &[u8],
    ) -> Result<Self, Flaw> {
        let old = match storage.len()? {
            0 => Old::default(),
            _ => Old::of(storage, load(storage, page_size)?)?,
        };
        let groups = end.div_ceil(GROUP as u64).max(old.image.superblock.groups);
        data_end(page_size, groups).ok_or(Errno::EFBIG)?;
        Ok(Self {
            storage,
            page_size,
            old,
            groups,
            fill: Pattern::new(fill, page_size),
            records: Vec::new(),
            sums: Vec::new(),
            batch: Batch::default(),
            begun: false,
            pages_written: 0,
        })
    }

    /// In which place the image so far has a page.
    pub(crate) fn place(&mut self, page: u64) -> Option<bool> {
        Some(self.old.find(page)?.0)
    }

    /// Has page `page` in the new image as it is in the one so far. Pages come in order.
    pub(crate) fn keep(&mut self, page: u64) {
        if let Some((second, sum)) = self.old.find(page) {
            self.insert(page, second, sum);
        }
    }

    /// Has page `page` in the new image, with this content. Pages come in order; those that do not come are
    /// not in the image.
    pub(crate) fn put(&mut self, page: u64, bytes: &[u8]) -> Result<(), Flaw> {
        if bytes == self.fill.at(page) {
            return Ok(());
        }
        let sum = page_sum(page, bytes);
        let before = self.old.find(page);
        if let Some((second, old_sum)) = before
            && old_sum == sum
            && self.is_at(page, second, bytes)?
        {
            self.insert(page, second, sum);
            return Ok(());
        }
        // Where the image so far does not have it.
        let second = before.is_some_and(|(second, _)| !second);
        self.write(place(self.page_size, page, second), bytes)?;
        self.pages_written += 1;
        self.insert(page, second, sum);
        Ok(())
    }

    /// Makes the new image the one that the storage has.
    pub(crate) fn commit(mut self, arena_len: u64) -> Result<Written, Flaw> {
        let old = &self.old.image.superblock;
        let is_same = old.arena_len == arena_len
            && old.fill == self.fill.value()
            && self.pages_written == 0
            && self.old.image.records == self.records;
        // Also if nothing has changed: whoever wrote what is there may have been killed before it was synced.
        self.flush()?;
        if !is_same {
            let superblock = Superblock {
                page_size: self.page_size as u32,
                generation: old_generation(&self.old) + 1,
                arena_len,
                pages: self.sums.len() as u64,
                groups: self.groups,
                fill: self.fill.value().to_vec(),
                ..Superblock::default()
            };
            let records = map::encode(&self.records);
            let sums: Vec<u8> = self.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
            let index = self.room((records.len() + sums.len()) as u64);
            self.old.image.superblock = publish(self.storage, superblock, index, &records, &sums)?;
        }
        Ok(Written {
            pages: self.pages_written,
            total: self.sums.len() as u64,
            generation: self.old.image.superblock.generation,
        })
    }

    fn insert(&mut self, page: u64, second: bool, sum: u32) {
        let group = page >> GROUP_SHIFT;
        if self.records.last().is_none_or(|last| last.group != group) {
            self.records.push(Record { group, pages: Group::default() });
        }
        if let Some(record) = self.records.last_mut() {
            record.insert(page as usize % GROUP, second);
        }
        self.sums.push(sum);
    }

    /// Whether a place holds these bytes. What it lacks, or cannot be read, it does not hold.
    fn is_at(&self, page: u64, second: bool, bytes: &[u8]) -> Result<bool, Flaw> {
        let mut found = vec![0; self.page_size];
        match read_exact(self.storage, place(self.page_size, page, second), &mut found) {
            Ok(()) => Ok(found == bytes),
            Err(Flaw::DAMAGED | Flaw::Os(Errno::EIO)) => Ok(false),
            Err(flaw) => Err(flaw),
        }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Flaw> {
        if self.batch.end() != offset || self.batch.bytes.len() >= BATCH {
            self.flush()?;
            self.batch.offset = offset;
        }
        self.batch.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Flaw> {
        self.prepare()?;
        if !self.batch.bytes.is_empty() {
            self.storage.write(self.batch.offset, &self.batch.bytes)?;
            self.batch.bytes.clear();
        }
        Ok(())
    }

    /// What comes before the first write.
    fn prepare(&mut self) -> Result<(), Flaw> {
        if core::mem::replace(&mut self.begun, true) || self.old.is_none() {
            return Ok(());
        }
        let image = &mut self.old.image;
        // Whoever wrote the image may have been killed before it was synced.
        self.storage.sync()?;
        // Both superblocks must lead to the same image: what another one leads to is written over now. Not
        // before the good one is on the disk, or a power failure could tear both.
        if let Some(offset) = image.stale.take() {
            self.storage.write(offset, &image.superblock.encode())?;
            self.storage.sync()?;
        }
        if image.superblock.index < data_end(self.page_size, self.groups).unwrap_or(u64::MAX) {
            self.relocate()?;
        }
        Ok(())
    }

    /// Moves the index of the image so far out of the way of a data region that grows.
    fn relocate(&mut self) -> Result<(), Flaw> {
        let records = map::encode(&self.old.image.records);
        let sums: Vec<u8> = self.old.sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let index = self.room((records.len() + sums.len()) as u64);
        let superblock = Superblock {
            generation: old_generation(&self.old) + 1,
            groups: self.groups,
            ..self.old.image.superblock.clone()
        };
        self.old.image.superblock = publish(self.storage, superblock, index, &records, &sums)?;
        Ok(())
    }

    /// Where there is room for an index of `len` bytes: behind the data region, and not where the index of
    /// the image so far is.
    fn room(&self, len: u64) -> u64 {
        let first = data_end(self.page_size, self.groups).unwrap_or(u64::MAX);
        let old = &self.old.image.superblock;
        match map::index_end(old, self.page_size) {
            Some(end) if first.saturating_add(len) > old.index => {
                end.max(first).next_multiple_of(self.page_size as u64)
            }
            _ => first,
        }
    }
}

/// Writes an index to where nothing is, and has a superblock lead to it.
fn publish(
    storage: &impl Storage,
    mut superblock: Superblock,
    index: u64,
    records: &[u8],
    sums: &[u8],
) -> Result<Superblock, Flaw> {
    superblock.index = index;
    superblock.records = (records.len() / RECORD) as u64;
    superblock.map_sum = crc32fast::hash(records);
    superblock.sums_sum = crc32fast::hash(sums);
    storage.write(index, &[records, sums].concat())?;
    storage.sync()?;
    let bytes = superblock.encode();
    storage.write(0, &bytes)?;
    storage.sync()?;
    // It is done, whatever becomes of the copy: the next save looks after that, and syncs it before it writes
    // the first superblock again.
    let _ = storage.write(SUPERBLOCK as u64, &bytes);
    Ok(superblock)
}

fn old_generation(old: &Old) -> u64 {
    old.image.superblock.generation
}

/// The image so far, walked in order.
#[derive(Default)]
struct Old {
    image: Image,
    sums: Vec<u32>,
    /// The record to look at, and how many pages come before it.
    cursor: usize,
    before: usize,
}

impl Old {
    fn of(storage: &impl Storage, image: Image) -> Result<Self, Flaw> {
        let sums = sums(storage, &image)?;
        Ok(Self { image, sums, cursor: 0, before: 0 })
    }

    fn is_none(&self) -> bool {
        self.image.superblock.generation == 0
    }

    /// Where a page lies, and its checksum; pages are asked for in order.
    fn find(&mut self, page: u64) -> Option<(bool, u32)> {
        let (group, index) = (page >> GROUP_SHIFT, page as usize % GROUP);
        let records = &self.image.records;
        while records.get(self.cursor).is_some_and(|record| record.group < group) {
            self.before += records[self.cursor].count();
            self.cursor += 1;
        }
        let record = records.get(self.cursor).filter(|record| record.group == group)?;
        let second = record.pages.place(index)?;
        Some((second, *self.sums.get(self.before + record.rank(index))?))
    }
}

/// Pages side by side that are written together.
#[derive(Default)]
struct Batch {
    offset: u64,
    bytes: Vec<u8>,
}

impl Batch {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// What absent pages contain.
struct Pattern {
    /// The value over and over, for a page more than once.
    bytes: Vec<u8>,
    period: usize,
    page_size: usize,
    is_zero: bool,
}

impl Pattern {
    fn new(value: &[u8], page_size: usize) -> Self {
        let is_zero = value.is_empty();
        let value = if is_zero { &[0] } else { value };
        let bytes = value.iter().copied().cycle().take(value.len() + page_size).collect();
        Self { bytes, period: value.len(), page_size, is_zero }
    }

    /// What page `page` contains.
    fn at(&self, page: u64) -> &[u8] {
        let phase = (page as u128 * self.page_size as u128 % self.period as u128) as usize;
        &self.bytes[phase..phase + self.page_size]
    }

    /// The value as a superblock has it.
    fn value(&self) -> &[u8] {
        if self.is_zero { &[] } else { &self.bytes[..self.period] }
    }
}
