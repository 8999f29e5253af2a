//! Images that arenas were saved to, as templates.

use super::{Kind, Template, repeat};
use crate::arena::mapping::Mapping;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::stored::{self, GROUP, Group};
use crate::image::{self, Flaw, Image, Window};
use crate::page::{page_size, round_up};
use crate::sys;
use core::ptr::NonNull;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

/// An image that was brought up.
pub(crate) struct StoredImage {
    /// What the handler reads; it points into the rest.
    view: stored::Stored,
    /// The groups that have pages, in order.
    groups: Vec<u64>,
    arena_len: usize,
    fill: Vec<u8>,
    /// The device and the number of the file, if the image begins where that does.
    file: Option<(u64, u64)>,
    // Dropped after the view.
    _data: Option<Mapping>,
    _table: Option<Mapping>,
    _fill: Option<Mapping>,
}

impl Template {
    /// The arena that was saved to `file`, see [`Arena::save`](crate::Arena::save): its pages are read one
    /// by one as they are touched, so bringing up an image costs in proportion to what is touched, and
    /// reading 136 bytes for each 2 MiB that the image has something in. The arena must not be
    /// shorter than the one that was saved; in a longer one, what was absent goes on.
    ///
    /// Pages are not verified; [`ImageInfo::verify`](crate::ImageInfo::verify) does that. While the
    /// template lives, somebody may save to the file: the first such save changes nothing here, and after
    /// a second one a page touched later may be what that page became. Who must not see that saves to
    /// another file and renames it. Touching a page whose bytes are gone, because the file was cut short,
    /// is a violation.
    ///
    /// # Errors
    /// - [`ErrorKind::NotAnImage`]: something else is in the file, or nothing, because the first save to it
    ///   has not come to its end.
    /// - [`ErrorKind::ImageDamaged`], [`ErrorKind::ImageVersion`], [`ErrorKind::ImageOfOtherMachine`]: it
    ///   cannot be used.
    /// - [`ErrorKind::TemplateUnreadable`] if it is no regular file; [`ErrorKind::Os`] if it is not open for
    ///   reading or cannot be mapped.
    ///
    /// ```
    /// # use std::os::fd::FromRawFd;
    /// # // SAFETY: a C string, and a new descriptor.
    /// # let file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"x".as_ptr(), 1)) };
    /// let arena = lacuna::Arena::builder(1 << 30).reserve()?;
    /// // SAFETY: the byte is within the arena, and nobody else uses the arena.
    /// unsafe { arena.as_ptr().add(1 << 29).write(7) };
    /// arena.save(&file)?;
    ///
    /// // Later, in any process:
    /// let template = lacuna::Template::image(&file)?;
    /// let arena = lacuna::Arena::builder(1 << 30).template(template).reserve()?;
    /// // SAFETY: as above.
    /// assert_eq!(unsafe { arena.as_ptr().add(1 << 29).read() }, 7);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn image(file: &File) -> Result<Self> {
        Self::image_at(file, 0)
    }

    /// As [`image`](Self::image), of an image that begins at byte `offset` of a larger file: a bundle, or
    /// an executable. What comes after it in the file is not looked at.
    ///
    /// # Errors
    /// Those of [`image`](Self::image), and [`ErrorKind::Unaligned`] if the offset is not a multiple of the
    /// page size.
    pub fn image_at(file: &File, offset: u64) -> Result<Self> {
        if !offset.is_multiple_of(page_size() as u64) {
            let error = Error::new(Operation::Template, ErrorKind::Unaligned);
            return Err(error.value(offset as usize));
        }
        super::regular_len(file)?;
        let window = Window { file: file.as_fd(), base: offset };
        let image =
            image::load(&window, page_size()).map_err(|it| it.during(Operation::Template))?;
        StoredImage::new(file, offset, image)
            .map(|image| Self(Kind::Stored { image: Arc::new(image) }))
    }

    /// The length in bytes of the arena that was saved, if the template is an image.
    ///
    /// ```
    /// assert_eq!(lacuna::Template::zero().image_len(), None);
    /// ```
    #[must_use]
    pub fn image_len(&self) -> Option<usize> {
        Some(self.stored()?.arena_len)
    }

    /// The image, if the template is one that an arena was saved to.
    pub(crate) fn stored(&self) -> Option<&StoredImage> {
        match &self.0 {
            Kind::Stored { image } => Some(image),
            _ => None,
        }
    }
}

/// Whether `file` begins with an image, good or not.
pub(super) fn is_image(file: &File) -> Result<bool> {
    match image::begins_here(&Window { file: file.as_fd(), base: 0 }) {
        // Not open for reading, which mapping it will say.
        Err(Flaw::Os(Errno::EBADF)) => Ok(false),
        result => result.map_err(|flaw| flaw.during(Operation::Template)),
    }
}

impl StoredImage {
    fn new(file: &File, offset: u64, image: Image) -> Result<Self> {
        let superblock = image.superblock;
        let too_long = Error::new(Operation::Template, ErrorKind::TooLong);
        // Where nothing is, nothing need be mapped.
        let used = image.records.last().map_or(0, |last| last.group as usize + 1);
        let (data, table) = match used {
            0 => (None, None),
            _ => {
                let len = used.checked_mul(2 * GROUP * page_size()).ok_or(too_long)?;
                let start = offset.checked_add(2 * page_size() as u64).ok_or(too_long)?;
                (Some(Mapping::file(file.as_fd(), start, len)?), Some(table(&image.records, used)?))
            }
        };
        let period = superblock.fill.len();
        let fill = match period {
            0 => None,
            // SAFETY: the value has so many bytes.
            _ => Some(unsafe { repeat::buffer(superblock.fill.as_ptr(), period) }?),
        };
        let fill_view = fill.as_ref().map_or(stored::Fill::Zero, |buffer| stored::Fill::Repeat {
            buffer: buffer.base().as_ptr(),
            period,
            span: (buffer.len() - period) / page_size(),
        });
        let groups = table.as_ref().map_or(NonNull::dangling(), |it| it.base().cast::<Group>());
        let pages = data.as_ref().map_or(NonNull::dangling(), Mapping::base);
        // SAFETY: the table has so many groups and the mapping as many times their pages; both, and the
        // buffer, live as long as the view, and nobody writes to them.
        let view = unsafe { stored::Stored::new(pages.as_ptr(), groups.as_ptr(), used, fill_view) };
        Ok(Self {
            view,
            groups: image.records.iter().map(|record| record.group).collect(),
            arena_len: superblock.arena_len as usize,
            fill: superblock.fill,
            file: if offset == 0 { Some(identity(file)?) } else { None },
            _data: data,
            _table: table,
            _fill: fill,
        })
    }

    /// What the handler reads.
    pub(super) fn view(&self) -> &stored::Stored {
        &self.view
    }

    pub(super) fn arena_len(&self) -> usize {
        self.arena_len
    }

    /// Bytes after which the image has nothing.
    pub(super) fn defined_len(&self) -> usize {
        let end = self.groups.last().map_or(0, |last| (*last as usize + 1) * GROUP * page_size());
        end.min(self.arena_len)
    }

    /// The value that is repeated on pages that the image does not have.
    pub(super) fn fill(&self) -> &[u8] {
        &self.fill
    }

    /// The groups of pages that the image has any of.
    pub(super) fn groups(&self) -> &[u64] {
        &self.groups
    }

    /// Whether it lies at the start of the file with this status.
    pub(crate) fn is_of(&self, status: &libc::stat) -> bool {
        self.file == Some((status.st_dev, status.st_ino))
    }

    /// In which of its places in the file page `page` lies, if the image has it.
    pub(crate) fn place(&self, page: usize) -> Option<bool> {
        self.view.place(page)
    }
}

/// The groups' table, in memory that the kernel fills where there are any.
fn table(records: &[image::Record], groups: usize) -> Result<Mapping> {
    let too_long = Error::new(Operation::Template, ErrorKind::TooLong);
    let bytes = groups.checked_mul(size_of::<Group>()).ok_or(too_long)?;
    let mapping = Mapping::zeroed(round_up(bytes, page_size()).ok_or(too_long)?)?;
    let table = mapping.base().cast::<Group>();
    for record in records {
        // SAFETY: the records are in order, and the last is the table's last; the memory is new.
        unsafe { table.add(record.group as usize).write(record.pages) };
    }
    Ok(mapping)
}

fn identity(file: &File) -> Result<(u64, u64)> {
    let status = sys::status(file.as_raw_fd())
        .map_err(|errno: Errno| Error::os(Operation::Template, errno))?;
    Ok((status.st_dev, status.st_ino))
}
