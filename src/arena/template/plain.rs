//! Images that are bytes: a copy of some, or a file's.

use crate::arena::mapping::Mapping;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::source::Source;
use crate::page::{page_size, round_up};
use crate::sys::{self, seam::Call};
use core::ptr;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// The bytes that an arena starts with; zeroes follow.
pub(super) struct Image {
    /// The whole pages, from this offset of the mapping on.
    body: Option<(Mapping, usize)>,
    /// The last page, if the image ends within one: a copy, zeroes after the image's end.
    tail: Option<Mapping>,
    pub(super) len: usize,
    /// Whether the body is a file's.
    mapped: bool,
}

impl Image {
    /// A copy of `bytes`.
    pub(super) fn copied(bytes: &[u8]) -> Result<Self> {
        let copy = |bytes: &[u8]| {
            let mapping = Mapping::zeroed(bytes.len().next_multiple_of(page_size()))?;
            // SAFETY: the mapping is new and at least as long as the bytes.
            unsafe {
                ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.base().as_ptr(), bytes.len());
            }
            Ok(mapping)
        };
        let (head, rest) = bytes.split_at(bytes.len() - bytes.len() % page_size());
        let body = if head.is_empty() { None } else { Some((copy(head)?, 0)) };
        let tail = if rest.is_empty() { None } else { Some(copy(rest)?) };
        Ok(Self { body, tail, len: bytes.len(), mapped: false })
    }

    /// `len` bytes of a file from `start` on, which are there.
    pub(super) fn mapped(file: &File, start: u64, len: usize) -> Result<Self> {
        let rest = len % page_size();
        let whole = len - rest;
        let body = match whole {
            0 => None,
            _ => {
                let skip = start as usize % page_size();
                Some((Mapping::file(file.as_fd(), start - skip as u64, whole + skip)?, skip))
            }
        };
        let tail = match rest {
            0 => None,
            _ => Some(read_tail(file, start + whole as u64, rest)?),
        };
        Ok(Self { body, tail, len, mapped: true })
    }

    /// What the handler needs, see [`Template::source`](super::Template::source).
    pub(super) fn source(&self, page: usize) -> Result<(Source, Option<Mapping>)> {
        let bytes = self.body.as_ref().map_or(ptr::null(), |(mapping, skip)| {
            mapping.base().as_ptr().wrapping_add(*skip).cast_const()
        });
        let base_tail =
            self.tail.as_ref().map_or(ptr::null(), |it| it.base().as_ptr().cast_const());
        let whole = self.len / page;
        let own = match self.len % page {
            0 => None,
            _ if page == page_size() => None,
            _ => Some(self.large_tail(bytes.wrapping_add(whole * page), base_tail, page)?),
        };
        let tail = own.as_ref().map_or(base_tail, |it| it.base().as_ptr().cast_const());
        Ok((Source::Image { bytes, whole, tail, mapped: self.mapped }, own))
    }

    /// The last page, of `page` bytes, which the image ends within: bytes of the body from `from` on,
    /// and those of its last base page at `base_tail`.
    ///
    /// In a file, since the body may be one that is cut short, of which a system call can tell.
    fn large_tail(&self, from: *const u8, base_tail: *const u8, page: usize) -> Result<Mapping> {
        let error = |errno| Error::os(Operation::Template, errno);
        let file = sys::memfd(c"lacuna:tail", 0).map_err(error)?;
        let rest = self.len % page;
        let in_body = rest - rest % page_size();
        copy_to(file.as_fd(), from, 0, in_body)?;
        copy_to(file.as_fd(), base_tail, in_body, rest - in_body)?;
        sys::set_file_len(file.as_fd(), page).map_err(error)?;
        Mapping::file(file.as_fd(), 0, page)
    }
}

/// Writes `len` bytes from `from` on, which may turn out not to be readable, to a file.
fn copy_to(file: BorrowedFd<'_>, from: *const u8, offset: usize, len: usize) -> Result<()> {
    let mut done = 0;
    while done < len {
        let (at, left) = (from.wrapping_add(done), len - done);
        // SAFETY: the file is a new one of ours.
        let step =
            unsafe { sys::write_at(Call::WriteFile, file.as_raw_fd(), at, left, offset + done) };
        match step {
            Ok(bytes) if bytes > 0 => done += bytes,
            Ok(_) | Err(Errno::EFAULT) => {
                return Err(Error::new(Operation::Template, ErrorKind::TemplateUnreadable));
            }
            Err(errno) => return Err(Error::os(Operation::Template, errno)),
        }
    }
    Ok(())
}

/// The last bytes of an image, on a page of their own.
fn read_tail(file: &File, offset: u64, len: usize) -> Result<Mapping> {
    let mapping = Mapping::zeroed(page_size().max(round_up(len, page_size()).unwrap_or(len)))?;
    // SAFETY: the mapping is new, zeroed, and at least as long.
    let bytes = unsafe { core::slice::from_raw_parts_mut(mapping.base().as_ptr(), len) };
    match file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(mapping),
        Err(_) => Err(Error::new(Operation::Template, ErrorKind::TemplateUnreadable)),
    }
}
