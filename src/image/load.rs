//! Reading an image: its superblock and its map, and what else is asked for.

use super::map::{self, RECORD, Record, SUM};
use super::superblock::{Found, SUPERBLOCK, Superblock};
use super::{Flaw, Storage, page_sum, place, read_exact};
use crate::error::ErrorKind;
use core::cmp::Ordering;

/// An image, but for its pages.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) superblock: Superblock,
    pub(crate) records: Vec<Record>,
    /// Where another superblock than this one lies.
    pub(super) stale: Option<u64>,
}

/// How often an image that changes while it is read is read again.
const ATTEMPTS: u32 = 100;

/// Whether there is an image, good or not, rather than something else.
pub(crate) fn begins_here(storage: &impl Storage) -> Result<bool, Flaw> {
    let bytes = superblocks(storage)?;
    Ok(Superblock::begins(&bytes) || bytes.get(SUPERBLOCK..).is_some_and(Superblock::begins))
}

/// Reads what there is to know of an image before its pages. It takes no lock: what a saver writes
/// meanwhile is not what the superblock leads to, unless it has saved twice.
pub(crate) fn load(storage: &impl Storage, page_size: usize) -> Result<Image, Flaw> {
    settled(storage, page_size, Ok)
}

/// Reads an image and does `more` with it; again if it turns out to be damaged and another one has taken
/// its place meanwhile.
pub(super) fn settled<T>(
    storage: &impl Storage,
    page_size: usize,
    mut more: impl FnMut(Image) -> Result<T, Flaw>,
) -> Result<T, Flaw> {
    let mut seen = None;
    for _ in 0..ATTEMPTS {
        let (superblock, stale) = superblock(storage, page_size)?;
        if seen.replace(superblock.generation) == Some(superblock.generation) {
            break;
        }
        let image = records(storage, &superblock, page_size).map(|records| Image {
            superblock,
            records,
            stale,
        });
        match image.and_then(&mut more) {
            Err(Flaw::DAMAGED) => {}
            result => return result,
        }
    }
    Err(Flaw::DAMAGED)
}

/// The checksums of the pages, in their order.
pub(super) fn sums(storage: &impl Storage, image: &Image) -> Result<Vec<u32>, Flaw> {
    let superblock = &image.superblock;
    let offset = superblock.index + superblock.records * RECORD as u64;
    let bytes = part(storage, offset, superblock.pages as usize * SUM)?;
    if crc32fast::hash(&bytes) != superblock.sums_sum {
        return Err(Flaw::DAMAGED);
    }
    let (sums, _) = bytes.as_chunks::<SUM>();
    Ok(sums.iter().map(|sum| u32::from_le_bytes(*sum)).collect())
}

/// Reads every page that the image has, and checks it.
pub(super) fn verify(storage: &impl Storage, image: &Image, page_size: usize) -> Result<(), Flaw> {
    let mut sums = sums(storage, image)?.into_iter();
    let mut bytes = vec![0; page_size];
    for (page, second) in image.records.iter().flat_map(Record::places) {
        read_exact(storage, place(page_size, page, second), &mut bytes)?;
        if sums.next() != Some(page_sum(page, &bytes)) {
            return Err(Flaw::DAMAGED);
        }
    }
    Ok(())
}

/// The superblock that counts, and where the other one is if that is not the same.
fn superblock(storage: &impl Storage, page_size: usize) -> Result<(Superblock, Option<u64>), Flaw> {
    const COPY: Option<u64> = Some(SUPERBLOCK as u64);
    let bytes = superblocks(storage)?;
    let copy = bytes.get(SUPERBLOCK..).unwrap_or_default();
    let first = Superblock::decode(&bytes, page_size);
    match (first, Superblock::decode(copy, page_size)) {
        // Whoever wrote it may have gone on in ways that are not known here.
        (Found::Unusable(flaw), _) | (_, Found::Unusable(flaw)) => Err(flaw),
        (Found::Good(first), Found::Good(copy)) => {
            Ok(match copy.generation.cmp(&first.generation) {
                Ordering::Greater => (copy, Some(0)),
                _ if first == copy => (first, None),
                _ => (first, COPY),
            })
        }
        (Found::Good(first), _) => Ok((first, COPY)),
        (_, Found::Good(copy)) => Ok((copy, Some(0))),
        (Found::Nothing, Found::Nothing) => Err(Flaw::Kind(ErrorKind::NotAnImage)),
        _ => Err(Flaw::DAMAGED),
    }
}

/// The bytes of both, or as many as there are.
fn superblocks(storage: &impl Storage) -> Result<Vec<u8>, Flaw> {
    let mut bytes = vec![0; 2 * SUPERBLOCK];
    let read = storage.read(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}

fn records(
    storage: &impl Storage,
    superblock: &Superblock,
    page_size: usize,
) -> Result<Vec<Record>, Flaw> {
    let len = storage.len()?;
    match map::index_end(superblock, page_size) {
        // Behind an index of nothing, the copy of the superblock may not have been written yet.
        Some(end) if end <= len || superblock.records == 0 => {}
        _ => return Err(Flaw::DAMAGED),
    }
    let bytes = part(storage, superblock.index, superblock.records as usize * RECORD)?;
    if crc32fast::hash(&bytes) != superblock.map_sum {
        return Err(Flaw::DAMAGED);
    }
    let records = map::decode(&bytes);
    map::check(superblock, &records, page_size, len)?;
    Ok(records)
}

/// So many bytes, which the file is said to have.
fn part(storage: &impl Storage, offset: u64, len: usize) -> Result<Vec<u8>, Flaw> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| nix::errno::Errno::ENOMEM)?;
    bytes.resize(len, 0);
    read_exact(storage, offset, &mut bytes)?;
    Ok(bytes)
}
