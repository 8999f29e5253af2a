//! What an image is, and whether it is whole.

use super::load::{Image, settled, verify};
use super::{Flaw, Window};
use crate::error::{Operation, Result};
use crate::page::page_size;
use std::fs::File;
use std::os::fd::AsFd;

/// What there is to know of an image before it is brought up; see [`Arena::save`](crate::Arena::save).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageInfo {
    /// Bytes of the arena that was saved. One that the image is brought up in must not be shorter.
    pub arena_bytes: usize,
    /// Bytes of the pages that the image has; the others are zeroes, or a value that is repeated.
    pub present_bytes: usize,
    /// Bytes of the value that is repeated on absent pages; 0 if they are zeroes.
    pub fill_bytes: usize,
    /// How often the image has changed since the file was empty.
    pub generation: u64,
}

impl ImageInfo {
    /// Reads what the image in `file` says of itself, and checks that; its pages are not read. The image
    /// begins at byte `offset`, 0 in a file of its own.
    ///
    /// # Errors
    /// Those of [`Template::image_at`](crate::Template::image_at), but that any offset will do.
    ///
    /// ```
    /// # use std::os::fd::FromRawFd;
    /// # // SAFETY: a C string, and a new descriptor.
    /// # let file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"x".as_ptr(), 1)) };
    /// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
    /// arena.save(&file)?;
    /// let info = lacuna::ImageInfo::read(&file, 0)?;
    /// assert_eq!((info.arena_bytes, info.present_bytes), (1 << 30, 0));
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn read(file: &File, offset: u64) -> Result<Self> {
        let window = Window { file: file.as_fd(), base: offset };
        Self::of(settled(&window, page_size(), Ok))
    }

    /// As [`read`](Self::read), and reads every page and compares its checksum, which bringing an image up
    /// does not.
    ///
    /// # Errors
    /// Those of [`read`](Self::read); [`ErrorKind::ImageDamaged`](crate::ErrorKind::ImageDamaged) if a page
    /// is not what was saved.
    pub fn verify(file: &File, offset: u64) -> Result<Self> {
        let window = Window { file: file.as_fd(), base: offset };
        Self::of(settled(&window, page_size(), |image| {
            verify(&window, &image, page_size())?;
            Ok(image)
        }))
    }

    fn of(image: core::result::Result<Image, Flaw>) -> Result<Self> {
        let superblock = image.map_err(|flaw| flaw.during(Operation::ReadImage))?.superblock;
        Ok(Self {
            arena_bytes: superblock.arena_len as usize,
            present_bytes: superblock.pages as usize * page_size(),
            fill_bytes: superblock.fill.len(),
            generation: superblock.generation,
        })
    }
}
