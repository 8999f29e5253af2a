//! What an image says of itself.

use super::{FILL_MAX, Flaw};
use crate::error::ErrorKind;

/// Bytes of a superblock, whatever the page size.
pub(super) const SUPERBLOCK: usize = 4096;
/// With the line ends that a transfer as text would change.
const MAGIC: [u8; 16] = *b"lacuna image\r\n\x1a\n";
const VERSION: u32 = 1;
/// As the machine that saved has it in memory, like the pages.
const BYTE_ORDER: [u8; 4] = 0x0102_0304u32.to_ne_bytes();

/// Where each field begins.
mod at {
    pub(super) const VERSION: usize = 16;
    pub(super) const PAGE_SIZE: usize = 20;
    pub(super) const BYTE_ORDER: usize = 24;
    pub(super) const FILL_LEN: usize = 28;
    pub(super) const GENERATION: usize = 32;
    pub(super) const ARENA_LEN: usize = 40;
    pub(super) const PAGES: usize = 48;
    pub(super) const GROUPS: usize = 56;
    pub(super) const INDEX: usize = 64;
    pub(super) const RECORDS: usize = 72;
    pub(super) const MAP_SUM: usize = 80;
    pub(super) const SUMS_SUM: usize = 84;
    pub(super) const FILL: usize = 88;
    pub(super) const CHECKSUM: usize = super::SUPERBLOCK - 4;
}

/// A superblock. The magic, the version and the checksum are where they are in every version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) page_size: u32,
    pub(crate) generation: u64,
    /// Bytes of the arena.
    pub(crate) arena_len: u64,
    /// Pages that the image has.
    pub(crate) pages: u64,
    /// Groups that the data region has room for.
    pub(crate) groups: u64,
    /// Where the map begins.
    pub(crate) index: u64,
    /// Records of the map.
    pub(crate) records: u64,
    /// The checksum of the map.
    pub(crate) map_sum: u32,
    /// The checksum of the sums.
    pub(crate) sums_sum: u32,
    /// What is repeated on pages that the image does not have; nothing for zeroes.
    pub(crate) fill: Vec<u8>,
}

/// What is found where a superblock may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Good(Superblock),
    /// It begins as one does, but its checksum is wrong.
    Damaged,
    /// One that cannot be used here.
    Unusable(Flaw),
    /// None at all.
    Nothing,
}

impl Superblock {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SUPERBLOCK];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(at::VERSION, &VERSION.to_le_bytes());
        put(at::PAGE_SIZE, &self.page_size.to_le_bytes());
        put(at::BYTE_ORDER, &BYTE_ORDER);
        put(at::FILL_LEN, &(self.fill.len() as u32).to_le_bytes());
        put(at::GENERATION, &self.generation.to_le_bytes());
        put(at::ARENA_LEN, &self.arena_len.to_le_bytes());
        put(at::PAGES, &self.pages.to_le_bytes());
        put(at::GROUPS, &self.groups.to_le_bytes());
        put(at::INDEX, &self.index.to_le_bytes());
        put(at::RECORDS, &self.records.to_le_bytes());
        put(at::MAP_SUM, &self.map_sum.to_le_bytes());
        put(at::SUMS_SUM, &self.sums_sum.to_le_bytes());
        put(at::FILL, &self.fill);
        let sum = crc32fast::hash(&bytes[..at::CHECKSUM]);
        bytes[at::CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads `bytes`, shorter than a superblock where the file ends.
    pub(super) fn decode(bytes: &[u8], page_size: usize) -> Found {
        if !bytes.starts_with(&MAGIC) {
            return Found::Nothing;
        }
        let Some(bytes) = bytes.first_chunk::<SUPERBLOCK>() else { return Found::Damaged };
        let short = |at: usize| u32::from_le_bytes(field(bytes, at));
        let long = |at: usize| u64::from_le_bytes(field(bytes, at));
        if crc32fast::hash(&bytes[..at::CHECKSUM]) != short(at::CHECKSUM) {
            return Found::Damaged;
        }
        if short(at::VERSION) != VERSION {
            return Found::Unusable(Flaw::Version(short(at::VERSION)));
        }
        if short(at::PAGE_SIZE) as usize != page_size {
            return Found::Unusable(Flaw::PageSize(short(at::PAGE_SIZE)));
        }
        if field(bytes, at::BYTE_ORDER) != BYTE_ORDER {
            return Found::Unusable(Flaw::Kind(ErrorKind::ImageOfOtherMachine));
        }
        let fill_len = short(at::FILL_LEN) as usize;
        if fill_len > FILL_MAX {
            return Found::Damaged;
        }
        Found::Good(Self {
            page_size: short(at::PAGE_SIZE),
            generation: long(at::GENERATION),
            arena_len: long(at::ARENA_LEN),
            pages: long(at::PAGES),
            groups: long(at::GROUPS),
            index: long(at::INDEX),
            records: long(at::RECORDS),
            map_sum: short(at::MAP_SUM),
            sums_sum: short(at::SUMS_SUM),
            fill: bytes[at::FILL..at::FILL + fill_len].to_vec(),
        })
    }

    /// Whether `bytes`, the first of a file, begin with a superblock, good or not.
    pub(super) fn begins(bytes: &[u8]) -> bool {
        bytes.starts_with(&MAGIC)
    }
}

/// The field at `at`, which lies within a superblock.
fn field<const N: usize>(bytes: &[u8; SUPERBLOCK], at: usize) -> [u8; N] {
    bytes[at..].first_chunk().copied().unwrap_or([0; N])
}
