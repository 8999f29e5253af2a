//! Saving an arena to a file: see [`crate::image`] for what is written, and in which order.

use super::mapping::Mapping;
use super::{Arena, Template};
use crate::Errno;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::bits::Snapshot;
use crate::fault::pagemap::{Page, Pagemap};
use crate::fault::region::Region;
use crate::fault::signals::SignalsBlocked;
use crate::fault::source::Content;
use crate::fault::tables::Chunk;
use crate::image::{Flaw, ImageFile, Update, Window, retry};
use crate::page::{CHUNK, page_size};
use crate::sys::{self, seam::Call};
use core::ops::Range;
use core::ptr;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// What [`Arena::save`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Saved {
    /// Bytes of the pages that were written, since they are new or have changed.
    pub written_bytes: usize,
    /// Bytes of all pages that the image has now.
    pub image_bytes: usize,
    /// How often the image has changed since the file was empty.
    pub generation: u64,
}

impl Arena {
    /// Saves what is in the arena to `file`: an *image*, which [`Template::image`] brings up again, lazily,
    /// in this process or another. Written are the pages that are present and those that an image or the
    /// bytes of the template define; what a repeated value says of the others is noted once. Pages that are
    /// all zeroes, or all the repeated value, take no space.
    ///
    /// If the file has an image already, only the pages that differ from it are written: a save costs
    /// reading what is present, and writing what has changed. If the template is the image in this very
    /// file, what has not been touched is not even read. A file that is empty gets its first image;
    /// one that has anything else in it is refused, also what is left of a first save that was
    /// interrupted: truncate it.
    ///
    /// **At any moment the file has the old image or the new one, whole**, whatever kills the process, and
    /// when the power fails: fdatasync(2) is called before the change and after it. A file that is new also
    /// needs its directory synced, which is the caller's. After an error, the old image is there; the new
    /// one may be if syncing it is what failed.
    ///
    /// Each page has two places in the file, so that a page can be changed without being written twice: a
    /// file takes up to twice the space of what is in it, until it is saved to a new one. It is sparse and
    /// looks larger than it is: copy it with `cp --sparse=always`. Its length is twice as far as the last
    /// page that is present lies from the arena's start, and must be one that the file system allows
    /// (16 TiB on ext4).
    ///
    /// Other threads may go on writing to the arena. A page that is written meanwhile is saved as it was
    /// before or after, or as a mix of the two, and pages may be saved as of different moments: who needs one
    /// moment stops the writers. First touches, discards and forks wait while a chunk of 2 MiB is copied, not
    /// while it is written. A save takes 4 MiB of memory, and eight bytes for each page of the image.
    ///
    /// A forked child may save its arena as its parent may, to another file or in turns.
    ///
    /// With `RLIMIT_FSIZE` the kernel raises SIGXFSZ, which ends the process unless it is ignored.
    ///
    /// # Errors
    /// - [`ErrorKind::NotAnImage`]: the file has something else in it. [`ErrorKind::ImageDamaged`],
    ///   [`ErrorKind::ImageVersion`], [`ErrorKind::ImageOfOtherMachine`]: its image cannot be changed.
    /// - [`ErrorKind::ImageBusy`]: another thread or process is saving to the file, or has a lock
    ///   on all of it (fcntl(2)).
    /// - [`ErrorKind::Conflict`]: the arena is of huge pages (hugetlbfs) or shared memory.
    /// - [`ErrorKind::TemplateIsFunction`], [`ErrorKind::FillTooLong`] (more than 2048 bytes): no image can
    ///   hold what untouched pages contain.
    /// - [`ErrorKind::TemplateUnreadable`]: the template's file shrank or its device failed.
    /// - [`ErrorKind::Os`] with `EBADF`: the file is not open for reading and writing. With
    ///   `ENOSPC`, `EDQUOT`, `EFBIG`, `EIO`: it cannot be written. With `EFAULT`: a page that is
    ///   present cannot be read.
    /// - [`ErrorKind::NotInherited`], [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see
    ///   [`Arena`].
    ///
    /// ```
    /// # use std::os::fd::FromRawFd;
    /// # // SAFETY: a C string, and a new descriptor.
    /// # let file = unsafe { std::fs::File::from_raw_fd(libc::memfd_create(c"x".as_ptr(), 1)) };
    /// let arena = lacuna::Arena::builder(1 << 40).reserve()?;
    /// // SAFETY: the byte is within the arena, and nobody else uses the arena.
    /// unsafe { arena.as_ptr().add(1 << 30).write(7) };
    /// assert_eq!(arena.save(&file)?.written_bytes, lacuna::page_size());
    /// assert_eq!(arena.save(&file)?.written_bytes, 0);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn save(&self, file: &File) -> Result<Saved> {
        self.check_inherited(Operation::Save)?;
        if self.region().backing.is_huge() || self.region().backing.is_shared() {
            return Err(Error::new(Operation::Save, ErrorKind::Conflict));
        }
        let fill = self._template.fill()?;
        let target = ImageFile::lock(file).map_err(|errno| match errno {
            Errno::EAGAIN => Error::new(Operation::Save, ErrorKind::ImageBusy),
            errno => failed(errno),
        })?;
        let flawed = |flaw: Flaw| flaw.during(Operation::Save);
        let window = target.window();
        let chunks = self.chunks_to_save();
        let end = chunks.last().map_or(0, |last| self.region().pages_of(*last).end);
        let update = Update::begin(&window, page_size(), end as u64, fill).map_err(flawed)?;
        let status = sys::status(window.file.as_raw_fd()).map_err(failed)?;
        let mut saving = Saving {
            arena: self,
            update,
            is_own: self._template.stored().is_some_and(|image| image.is_of(&status)),
            pages: Pages::new()?,
            pagemap: None,
        };
        chunks.into_iter().try_for_each(|index| saving.chunk(index))?;
        let written = saving.update.commit(self.len() as u64).map_err(flawed)?;
        Ok(Saved {
            written_bytes: written.pages as usize * page_size(),
            image_bytes: written.total as usize * page_size(),
            generation: written.generation,
        })
    }

    /// The chunks that have pages, or of which the template defines some, in order.
    fn chunks_to_save(&self) -> Vec<usize> {
        let region = self.region();
        let mut chunks = Vec::new();
        let mut from = 0;
        while let Some(index) = region.tables.summary().next(from) {
            chunks.push(index);
            from = index + 1;
        }
        let per_chunk = region.chunk_pages();
        for pages in self._template.defined() {
            let pages = pages.start..pages.end.min(region.pages);
            chunks.extend(pages.start / per_chunk..pages.end.div_ceil(per_chunk));
        }
        chunks.sort_unstable();
        chunks.dedup();
        chunks
    }
}

fn failed(errno: Errno) -> Error {
    Error::os(Operation::Save, errno)
}

/// A save on its way.
struct Saving<'a> {
    arena: &'a Arena,
    update: Update<'a, Window<'a>>,
    /// Whether the template is the image in the file that is saved to.
    is_own: bool,
    pages: Pages,
    /// The kernel's view, opened at the first lent chunk, if it can be.
    pagemap: Option<Option<Pagemap>>,
}

impl Saving<'_> {
    fn chunk(&mut self, index: usize) -> Result<()> {
        let pages = self.arena.region().pages_of(index);
        let present = self.copy_present(index)?;
        for at in 0..pages.len() {
            let page = pages.start + at;
            if !present.get(at) && !self.copy_template(page, at)? {
                continue;
            }
            let bytes = self.pages.page(at);
            self.update.put(page as u64, bytes).map_err(|flaw| flaw.during(Operation::Save))?;
        }
        Ok(())
    }

    /// Copies the chunk's pages that are present, and tells which they are. Nobody installs or discards
    /// any meanwhile.
    fn copy_present(&mut self, index: usize) -> Result<Snapshot> {
        let pagemap = &mut self.pagemap;
        let pages = &mut self.pages;
        let arena = self.arena;
        // Before the chunk is owned: a descriptor may take a lock of the program's.
        if arena.region().tables.chunk(index).is_some_and(|chunk| chunk.lent().is_some()) {
            pagemap.get_or_insert_with(|| Pagemap::open().ok());
        }
        let pagemap = pagemap.as_ref().and_then(Option::as_ref);
        let blocked = SignalsBlocked::new();
        let copied = arena.as_owner(&blocked, index, |region, chunk| {
            let present = filled(region, chunk, pagemap);
            let first = region.pages_of(chunk.index).start;
            let whole = region.chunk_pages();
            let mut start = present.next_set(0..whole);
            while start < whole {
                let end = present.next_clear(start..whole);
                let from = ptr::with_exposed_provenance(region.address_of(first + start));
                pages.copy(start, from, end - start)?;
                start = present.next_set(end..whole);
            }
            Ok(present)
        });
        copied.unwrap_or(Ok(Snapshot::EMPTY)).map_err(failed)
    }

    /// Copies what the template says that an absent page contains; false if the page need not be written.
    fn copy_template(&mut self, page: usize, at: usize) -> Result<bool> {
        let template: &Template = &self.arena._template;
        if !template.defines(page) {
            return Ok(false);
        }
        if let Some(image) = template.stored()
            && self.is_own
            && image.place(page) == self.update.place(page as u64)
        {
            // What the template shows is what lies there.
            self.update.keep(page as u64);
            return Ok(false);
        }
        let region = self.arena.region();
        let (Content::Bytes { from, .. } | Content::Shared { from, .. }) =
            region.source.at(page, region.page_shift)
        else {
            return Ok(false);
        };
        self.pages.copy(at, from, 1).map_err(|errno| match errno {
            Errno::EFAULT => Error::new(Operation::Save, ErrorKind::TemplateUnreadable),
            errno => failed(errno),
        })?;
        Ok(true)
    }
}

/// The pages of a chunk that may hold something: of a lent one, those that the kernel has filled, if it
/// tells. What it has not is zeroes, as the template says.
fn filled(region: &Region, chunk: &Chunk<'_>, pagemap: Option<&Pagemap>) -> Snapshot {
    let present = chunk.present();
    let (Some(pagemap), true) = (pagemap, chunk.lent().is_some()) else { return present };
    let mut there = chunk.resident.load();
    // Old kernels take for the zero page what is shared with a forked child.
    let mut visit = |pages: Range<usize>, page| match page {
        Page::Memory | Page::Common => there.insert(pages),
        Page::Absent => {}
    };
    match pagemap.visit(region, chunk.index, &mut visit) {
        Ok(()) => there.and(&present),
        Err(_) => present,
    }
}

/// A chunk's worth of pages to look at, in memory that only the kernel writes to: it copies from pages that
/// others may be writing to, and from files that may be cut short.
struct Pages {
    memory: Mapping,
    file: OwnedFd,
}

impl Pages {
    fn new() -> Result<Self> {
        let file = sys::memfd(c"lacuna:save", 0).map_err(failed)?;
        // The last byte gives the file its length.
        let end = [0u8];
        // SAFETY: the file is new, and the byte there.
        unsafe {
            sys::write_at(Call::CopyPages, file.as_raw_fd(), end.as_ptr(), 1, CHUNK - 1)
                .map_err(failed)?;
        }
        let memory = Mapping::shared(file.as_fd(), CHUNK)?;
        Ok(Self { memory, file })
    }

    /// Copies `count` pages from `from`, which need not be readable, to the pages from `at` on.
    fn copy(&mut self, at: usize, from: *const u8, count: usize) -> Result<(), Errno> {
        let mut done = 0;
        let len = count * page_size();
        while done < len {
            let from = from.wrapping_add(done);
            let offset = at * page_size() + done;
            let fd = self.file.as_raw_fd();
            // SAFETY: the file is this value's, and nobody looks at its pages meanwhile.
            match retry(|| unsafe { sys::write_at(Call::CopyPages, fd, from, len - done, offset) })?
            {
                0 => return Err(Errno::EFAULT),
                copied => done += copied,
            }
        }
        Ok(())
    }

    /// Page `at`, as it was copied last.
    fn page(&self, at: usize) -> &[u8] {
        let start = self.memory.base().as_ptr().wrapping_add(at * page_size());
        // SAFETY: the page lies in the mapping, and nobody writes to it while the slice is there.
        unsafe { core::slice::from_raw_parts(start, page_size()) }
    }
}
