//! Images: files that arenas are saved to. What is in them, and how they are changed so that a reader
//! finds the old image or the new one, whenever the writer died or the power failed.
//!
//! # The file
//! All numbers are little-endian; P is the page size of the machine that saved.
//!
//! ```text
//! 0          the superblock, 4096 bytes
//! 4096       its copy
//! 2 P        the data region: for each group of 512 pages of the arena 1024 places of P bytes,
//!            512 first ones and 512 second ones; most of it is a hole
//! index      behind the data region: the map, then the sums
//! ```
//! - **superblock** ([`superblock`]): what the image is of, its generation, where the index is; under a
//!   checksum. The first that is whole and has the highest generation counts.
//! - **map** ([`map`]): for each group that has pages, which, and in which of its two places each lies.
//! - **sums**: the CRC-32 of each page that the image has, in order, over its number and its bytes. They are
//!   read to save and to verify, not to bring up.
//!
//! What the map does not have is zeroes, or a value that is repeated, which the superblock tells.
//!
//! # Saving ([`update`])
//! 1. Sync: whoever wrote the image may have been killed before it was. If only one superblock is good, or
//!    the two differ, the other is made the one that counts; sync.
//! 2. Pages that changed are written to the place that the image does *not* use, and the new index to
//!    where the old one is not. Sync.
//! 3. The first superblock is written: this is the moment. Sync. Then its copy.
//!
//! Until the moment nothing that the old image consists of has been touched, and from then on all of the
//! new one is on the disk. A superblock that was torn by a power failure has no valid checksum, and the
//! copy is the old one. Nothing needs to be repaired before reading, and nothing is written twice.

mod file;
mod info;
mod load;
mod map;
mod superblock;
mod update;

#[cfg(test)]
mod crash;

pub use info::ImageInfo;

pub(crate) use file::{ImageFile, Window, retry};
pub(crate) use load::{Image, begins_here, load};
pub(crate) use map::Record;
pub(crate) use update::Update;

use crate::error::{Error, ErrorKind, Operation};
use crate::fault::stored::GROUP;
use nix::errno::Errno;

/// The longest value, in bytes, that an image may have in place of absent pages.
pub(crate) const FILL_MAX: usize = 2048;

/// What an image lies in.
pub(crate) trait Storage {
    /// Bytes there are.
    fn len(&self) -> Result<u64, Errno>;
    /// Reads up to `into.len()` bytes; tells how many there were.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno>;
    /// Writes all of `bytes`.
    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno>;
    /// What was written before survives a power failure that comes later.
    fn sync(&self) -> Result<(), Errno>;
}

/// Why an image cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    Kind(ErrorKind),
    /// Of another page size.
    PageSize(u32),
    Version(u32),
    Os(Errno),
}

impl Flaw {
    pub(crate) const DAMAGED: Self = Self::Kind(ErrorKind::ImageDamaged);

    /// The error of `operation` that comes of it.
    pub(crate) fn during(self, operation: Operation) -> Error {
        match self {
            Self::Kind(kind) => Error::new(operation, kind),
            Self::PageSize(size) => {
                Error::new(operation, ErrorKind::ImageOfOtherMachine).value(size as usize)
            }
            Self::Version(version) => {
                Error::new(operation, ErrorKind::ImageVersion).value(version as usize)
            }
            Self::Os(errno) => Error::os(operation, errno),
        }
    }
}

impl From<Errno> for Flaw {
    fn from(errno: Errno) -> Self {
        Self::Os(errno)
    }
}

/// Reads exactly so many bytes; an image that lacks them is damaged.
fn read_exact(storage: &impl Storage, offset: u64, into: &mut [u8]) -> Result<(), Flaw> {
    match storage.read(offset, into)? {
        read if read == into.len() => Ok(()),
        _ => Err(Flaw::DAMAGED),
    }
}

/// Where the data region begins.
fn data_start(page_size: usize) -> u64 {
    2 * page_size as u64
}

/// Where the data region of `groups` groups ends.
fn data_end(page_size: usize, groups: u64) -> Option<u64> {
    groups.checked_mul(2 * GROUP as u64 * page_size as u64)?.checked_add(data_start(page_size))
}

/// The offset of one of the two places of a page.
fn place(page_size: usize, page: u64, second: bool) -> u64 {
    data_start(page_size) + crate::fault::stored::place(page, second) * page_size as u64
}

/// The checksum of a page.
fn page_sum(page: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&page.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}
