//! Images that arenas have in common: a sealed file in memory, which each of them maps privately.

use super::mapping::Mapping;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::source::{Content, Source};
use crate::page::{page_shift, page_size};
use crate::sys::{self, seam::Call};
use core::ptr;
use core::slice;
use nix::errno::Errno;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// An image of which arenas have the frames in common, until they write.
pub(crate) struct SharedImage {
    /// The whole pages, unless there are none.
    body: Option<Body>,
    /// The last page, if the image ends within one: it is copied, as in any image.
    tail: Option<Mapping>,
    /// Bytes of the image.
    pub(crate) len: usize,
}

/// Whole pages in a file.
struct Body {
    file: OwnedFd,
    /// The file's bytes, to copy from.
    bytes: Mapping,
    /// A bit for each page that the file does not have, since it is of zeroes.
    holes: Mapping,
}

/// Nobody changes the file's length or its bytes, its maker included.
const SEALS: libc::c_int =
    libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;

/// Bytes written to the file at once: looked at for zeroes while they are in the cache.
const SPAN: usize = 1 << 20;

impl SharedImage {
    /// A copy of the first `len` bytes of an image, after which there are zeroes.
    pub(crate) fn new(image: &Source, len: usize) -> Result<Self> {
        let whole = len - len % page_size();
        let body = if whole == 0 { None } else { Some(Body::new(image, whole)?) };
        let tail = match image.at(whole / page_size(), page_shift()) {
            Content::Bytes { from, .. } if whole < len => Some(copy_of_page(from)?),
            _ => None,
        };
        Ok(Self { body, tail, len })
    }

    /// What the handler needs of it.
    pub(crate) fn source(&self) -> Source {
        let start = |mapping: &Mapping| mapping.base().as_ptr().cast_const();
        Source::Shared {
            bytes: self.body.as_ref().map_or(ptr::null(), |it| start(&it.bytes)),
            whole: self.len / page_size(),
            tail: self.tail.as_ref().map_or(ptr::null(), start),
            holes: self.body.as_ref().map_or(ptr::null(), |it| start(&it.holes).cast()),
        }
    }

    /// The file to map, and how many bytes of it; none if the image has no whole page.
    pub(crate) fn file(&self) -> Option<(BorrowedFd<'_>, usize)> {
        self.body.as_ref().map(|it| (it.file.as_fd(), it.bytes.len()))
    }
}

impl Body {
    /// Puts the first `len` bytes of an image, whole pages, into a file. They are read by system calls
    /// alone, since they may be a file's that is cut short.
    fn new(image: &Source, len: usize) -> Result<Self> {
        let error = |errno| Error::os(Operation::Template, errno).value(len);
        let file = sys::memfd(c"lacuna-image", libc::MFD_ALLOW_SEALING).map_err(error)?;
        sys::set_file_len(file.as_fd(), len).map_err(error)?;
        let bytes = Mapping::file(file.as_fd(), 0, len)?;
        let words = (len / page_size()).div_ceil(64);
        let holes = Mapping::zeroed((words * size_of::<u64>()).next_multiple_of(page_size()))?;
        let body = Self { file, bytes, holes };
        let mut done = 0;
        while done < len {
            done += body.put(image, done, len - done)?;
        }
        sys::seal(body.file.as_fd(), SEALS).map_err(error)?;
        Ok(body)
    }

    /// Puts some of the `left` bytes of the image from `offset` on into the file; tells how many.
    fn put(&self, image: &Source, offset: usize, left: usize) -> Result<usize> {
        let (page, shift) = (offset >> page_shift(), page_shift());
        match image.at(page, shift) {
            Content::Bytes { from, pages } => {
                let len = left.min(SPAN).min(pages << shift);
                self.write(from, offset, len)?;
                let error = |errno| Error::os(Operation::Template, errno).value(len);
                self.drop_zeroes(offset, len).map_err(error)?;
                Ok(len)
            }
            Content::Hole { pages } => {
                let len = left.min(pages << shift);
                (page..page + (len >> shift)).for_each(|page| self.mark_hole(page));
                Ok(len)
            }
            _ => Err(Error::new(Operation::Template, ErrorKind::NotShareable)),
        }
    }

    /// Writes `len` bytes at `from` to the file at `offset`.
    fn write(&self, from: *const u8, offset: usize, len: usize) -> Result<()> {
        let mut done = 0;
        while done < len {
            let (from, left) = (from.wrapping_add(done), len - done);
            let fd = self.file.as_raw_fd();
            // SAFETY: the file is this value's, which nobody has mapped but to read what it holds.
            match unsafe { sys::write_at(Call::WriteFile, fd, from, left, offset + done) } {
                Ok(0) | Err(Errno::EFAULT) => {
                    return Err(Error::new(Operation::Template, ErrorKind::TemplateUnreadable));
                }
                Ok(written) => done += written,
                Err(errno) => return Err(Error::os(Operation::Template, errno)),
            }
        }
        Ok(())
    }

    /// Takes those of `len` bytes at `offset` out of the file, page by page, that are zeroes.
    fn drop_zeroes(&self, offset: usize, len: usize) -> Result<(), Errno> {
        let page = page_size();
        let is_zero = |at: usize| {
            // SAFETY: the mapping is as long as the file, whose length nobody else changes.
            let bytes = unsafe { slice::from_raw_parts(self.bytes.base().as_ptr().add(at), page) };
            bytes.iter().all(|&byte| byte == 0)
        };
        let mut at = offset;
        while at < offset + len {
            let start = at;
            while at < offset + len && is_zero(at) {
                self.mark_hole(at / page);
                at += page;
            }
            if at > start {
                sys::punch(self.file.as_fd(), start, at - start)?;
            }
            at += page;
        }
        Ok(())
    }

    /// Notes that the file does not have a page.
    fn mark_hole(&self, page: usize) {
        // SAFETY: there is a bit for each page, and nobody else knows them yet.
        unsafe { *self.holes.base().cast::<u64>().as_ptr().add(page / 64) |= 1 << (page % 64) };
    }
}

/// A page of its own with the content of the one at `from`.
fn copy_of_page(from: *const u8) -> Result<Mapping> {
    let mapping = Mapping::zeroed(page_size())?;
    // SAFETY: a template's last page is memory, as long as a page; the mapping is new.
    unsafe { ptr::copy_nonoverlapping(from, mapping.base().as_ptr(), page_size()) };
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Arena, Template};

    /// Nobody can write to the file, nor change its length.
    #[test]
    fn the_file_is_sealed() {
        let template = Template::bytes(vec![7u8; 8 * page_size()]).unwrap().shared().unwrap();
        let (file, len) = template.shared_image().unwrap().file().unwrap();
        assert_eq!(len, 8 * page_size());
        assert_eq!(sys::set_file_len(file, page_size()), Err(Errno::EPERM));
        assert_eq!(sys::set_file_len(file, 9 * page_size()), Err(Errno::EPERM));
        assert_eq!(sys::punch(file, 0, page_size()), Err(Errno::EPERM));
        let byte = 1u8;
        // SAFETY: the byte is a byte; the file cannot be written.
        let result =
            unsafe { sys::write_at(Call::WriteFile, file.as_raw_fd(), &raw const byte, 1, 0) };
        assert_eq!(result, Err(Errno::EPERM));
    }

    /// Pages of zeroes take no memory, neither here nor in an arena that touches them.
    #[test]
    fn zeroes_are_holes() {
        let page = page_size();
        let mut bytes = vec![0u8; 1000 * page];
        (bytes[3 * page], bytes[999 * page + 1]) = (1, 1);
        let template = Template::bytes(&bytes).unwrap().shared().unwrap();
        let blocks = || {
            let (file, _) = template.shared_image().unwrap().file().unwrap();
            // SAFETY: zeroes are a valid stat, which fstat(2) overwrites.
            unsafe {
                let mut stat: libc::stat = core::mem::zeroed();
                assert_eq!(libc::fstat(file.as_raw_fd(), &raw mut stat), 0);
                stat.st_blocks as usize * 512
            }
        };
        assert_eq!(blocks(), 2 * page);
        let arena = Arena::builder(1000 * page).template(template.clone()).reserve().unwrap();
        let at = |page_index: usize| arena.as_ptr().wrapping_add(page_index * page);
        for (index, bytes) in bytes.chunks(page).enumerate().step_by(3) {
            // SAFETY: the page is the arena's, which nobody else uses.
            assert!(unsafe { slice::from_raw_parts(at(index), page) } == bytes, "page {index}");
            // SAFETY: as above.
            unsafe { at((index + 1) % 1000).write_volatile(9) };
        }
        if arena.backend() == crate::Backend::Userfaultfd {
            assert_eq!(blocks(), 2 * page, "touched holes are holes still");
        }
    }
}
