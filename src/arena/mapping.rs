//! Owned mappings.

use crate::error::{Error, Operation, Result};
use crate::page::{CHUNK, page_size, round_up};
use crate::sys;
use crate::{Errno, ErrorKind};
use core::ffi::c_int;
use core::ptr::{self, NonNull};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A mapping that is unmapped when dropped.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns an address range and hands out its address only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Address space without access and without memory.
    pub(crate) fn reserve(len: usize) -> Result<Self> {
        Self::anonymous(len, ProtFlags::PROT_NONE)
    }

    /// Zeroed memory that the kernel fills page by page as it is touched, never in huge pages.
    pub(crate) fn zeroed(len: usize) -> Result<Self> {
        let mapping = Self::anonymous(len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        mapping.forbid_huge_pages(0, len)?;
        Ok(mapping)
    }

    /// Zeroes that can only be read.
    pub(crate) fn zeroes(len: usize) -> Result<Self> {
        let mapping = Self::anonymous(len, ProtFlags::PROT_READ)?;
        mapping.forbid_huge_pages(0, len)?;
        Ok(mapping)
    }

    /// Zeroed memory, aligned to a chunk, that the kernel fills in huge pages where it can.
    pub(crate) fn huge(len: usize) -> Result<Self> {
        let spacious = Self::anonymous(len + CHUNK, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)?;
        let skip = spacious.base.as_ptr().align_offset(CHUNK);
        // What lies before and after is address space that nobody uses: not worth giving back.
        // SAFETY: the skipped bytes are fewer than a chunk.
        let base = unsafe { spacious.base.add(skip) };
        core::mem::forget(spacious);
        let mapping = Self { base, len };
        match mapping.advise(0, len, libc::MADV_HUGEPAGE) {
            Err(error) if error.errno() != Some(Errno::EINVAL) => Err(error),
            _ => Ok(mapping),
        }
    }

    /// `len` bytes of a file from the page-aligned `offset` on, to read.
    pub(crate) fn file(file: BorrowedFd<'_>, offset: u64, len: usize) -> Result<Self> {
        let error = |errno| Error::os(Operation::Map, errno).value(len);
        let offset = i64::try_from(offset).map_err(|_| error(Errno::EOVERFLOW))?;
        let from = Some((file.as_raw_fd(), offset));
        Self::new(len, ProtFlags::PROT_READ, MapFlags::MAP_PRIVATE, from).map_err(error)
    }

    /// Replaces `len` bytes at `offset`, which nobody uses, by those of a file from its start on:
    /// private to the mapping, and out of reach.
    pub(crate) fn overlay(&self, offset: usize, len: usize, file: BorrowedFd<'_>) -> Result<()> {
        let start = self.at(offset, len)?;
        let error = |errno| Error::os(Operation::Map, errno).value(len);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | MapFlags::MAP_FIXED;
        let from = Some((file.as_raw_fd(), 0));
        // SAFETY: the range lies in this mapping, which nobody uses yet.
        unsafe { sys::map(start.as_ptr(), len, ProtFlags::PROT_NONE, flags, from) }
            .and_then(|_| self.unlock(offset, len))
            .map_err(error)?;
        self.forbid_huge_pages(offset, len)
    }

    /// The first `len` bytes of a file, to read, as others write them.
    pub(crate) fn shared(file: BorrowedFd<'_>, len: usize) -> Result<Self> {
        let from = Some((file.as_raw_fd(), 0));
        Self::new(len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, from)
            .map_err(|errno| Error::os(Operation::Map, errno).value(len))
    }

    fn anonymous(len: usize, protection: ProtFlags) -> Result<Self> {
        let error = |errno| Error::os(Operation::Map, errno).value(len);
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        Self::new(len, protection, flags, None).map_err(error)
    }

    /// A mapping at an address of the kernel's choice, never locked in memory: after mlockall(2) with
    /// `MCL_FUTURE` the kernel would fill all of it at once, when it is mapped or made accessible. So
    /// it is unlocked before it is accessible.
    fn new(
        len: usize,
        protection: ProtFlags,
        flags: MapFlags,
        from: Option<(c_int, i64)>,
    ) -> Result<Self, Errno> {
        // SAFETY: it touches nothing that exists.
        let base = unsafe { sys::map(ptr::null_mut(), len, ProtFlags::PROT_NONE, flags, from) }?;
        let mapping = Self { base: NonNull::new(base).ok_or(Errno::ENOMEM)?, len };
        mapping.unlock(0, len)?;
        if protection != ProtFlags::PROT_NONE {
            // SAFETY: the mapping is new.
            unsafe { sys::protect(base, len, protection) }?;
        }
        Ok(mapping)
    }

    /// Has the kernel fill `len` bytes at `offset` no earlier than they are touched.
    fn unlock(&self, offset: usize, len: usize) -> Result<(), Errno> {
        debug_assert!(offset + len <= self.len);
        // SAFETY: the range lies in this mapping.
        match unsafe { sys::unlock(self.base.as_ptr().wrapping_add(offset), len) } {
            Err(Errno::ENOMEM) => Err(Errno::ENOMEM),
            // A filter that denies the call denies mlockall(2) as well.
            _ => Ok(()),
        }
    }

    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts other memory in the place of `len` bytes at `offset`, readable and writable: anonymous,
    /// or that of a file from its start on. Nothing is set aside for it.
    pub(crate) fn replace(
        &self,
        offset: usize,
        len: usize,
        flags: MapFlags,
        file: Option<BorrowedFd<'_>>,
    ) -> Result<()> {
        let start = self.at(offset, len)?;
        let error = |errno| Error::os(Operation::Map, errno).value(len);
        let flags = flags | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
        let from = file.map(|file| (file.as_raw_fd(), 0));
        // SAFETY: the range lies in this mapping, which nobody uses yet.
        unsafe { sys::map(start.as_ptr(), len, ProtFlags::PROT_NONE, flags, from) }
            .map_err(error)?;
        self.unlock(offset, len).map_err(error)?;
        self.open(offset, len)
    }

    /// Makes `len` bytes at `offset` readable and writable.
    pub(crate) fn open(&self, offset: usize, len: usize) -> Result<()> {
        self.protect(offset, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
    }

    /// Makes `len` bytes at `offset` inaccessible.
    pub(crate) fn close(&self, offset: usize, len: usize) -> Result<()> {
        self.protect(offset, len, ProtFlags::PROT_NONE)
    }

    /// Drops the memory of `len` bytes at `offset`.
    pub(crate) fn empty(&self, offset: usize, len: usize) -> Result<()> {
        self.advise(offset, len, libc::MADV_DONTNEED)
    }

    fn protect(&self, offset: usize, len: usize, protection: ProtFlags) -> Result<()> {
        let start = self.at(offset, len)?;
        // SAFETY: the range lies in this mapping, which nobody uses yet.
        unsafe { sys::protect(start.as_ptr(), len, protection) }
            .map_err(|errno| Error::os(Operation::Map, errno).value(len))
    }

    /// Keeps huge pages out of `len` bytes at `offset`.
    pub(crate) fn forbid_huge_pages(&self, offset: usize, len: usize) -> Result<()> {
        match self.advise(offset, len, libc::MADV_NOHUGEPAGE) {
            // A kernel without transparent huge pages does not know the advice.
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Has the kernel fill all of it now, where it can be told to (since Linux 5.14).
    pub(crate) fn populate(&self) -> Result<()> {
        match self.advise(0, self.len, libc::MADV_POPULATE_WRITE) {
            Err(error) if error.errno() == Some(Errno::EINVAL) => Ok(()),
            result => result,
        }
    }

    /// Has a forked child find `len` bytes at `offset` empty (since Linux 4.14).
    pub(crate) fn wipe_on_fork(&self, offset: usize, len: usize) -> Result<()> {
        self.advise(offset, len, libc::MADV_WIPEONFORK)
    }

    /// Has a forked child find nothing at all in place of `len` bytes at `offset`.
    pub(crate) fn keep_from_children(&self, offset: usize, len: usize) -> Result<()> {
        self.advise(offset, len, libc::MADV_DONTFORK)
    }

    fn advise(&self, offset: usize, len: usize, advice: c_int) -> Result<()> {
        let start = self.at(offset, len)?;
        // SAFETY: the range lies in this mapping; the advice changes no content.
        unsafe { sys::advise(start.as_ptr(), len, advice) }
            .map_err(|errno| Error::os(Operation::Advise, errno).value(len))
    }

    /// The address of `offset`, if `len` bytes from there on lie in the mapping.
    fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>> {
        match offset.checked_add(len) {
            // SAFETY: the offset lies within the mapping.
            Some(end) if end <= self.len => Ok(unsafe { self.base.add(offset) }),
            _ => Err(Error::new(Operation::Map, ErrorKind::OutOfBounds).value(offset)),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the owner goes, and with it the last user of the range. It cannot fail for a
        // range that is a mapping of its own; if the kernel cannot split its neighbours (ENOMEM),
        // the range stays reserved, which harms nobody.
        let _ = unsafe { sys::unmap(self.base.as_ptr(), self.len) };
    }
}

/// Where an arena's bytes lie in its address space:
///
/// ```text
///  | slack | guard | bytes of the arena ... | guard to the chunk's end | slack |
///                  ^ aligned to a chunk
/// ```
/// The guards are never accessible. Whole chunks belong to one arena, so the registry can tell
/// arenas apart by chunk; and since nothing registered lies side by side, the kernel cannot merge
/// one arena's mapping with another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the arena, whole pages.
    pub(crate) len: usize,
    /// Bytes from the arena's first to the end of its last chunk, guard included.
    pub(crate) span: usize,
    /// Bytes of address space to reserve.
    pub(crate) total: usize,
}

impl Layout {
    /// The layout for at least `len` bytes in pages of `unit` bytes, at most a chunk. Guards are of
    /// base pages.
    pub(crate) fn new(len: usize, unit: usize) -> Result<Self> {
        if len == 0 {
            return Err(Error::new(Operation::Reserve, ErrorKind::ZeroLength).value(len));
        }
        let page = page_size();
        let layout = || {
            let len = round_up(len, unit)?;
            let span = round_up(len.checked_add(page)?, CHUNK)?;
            let total = span.checked_add(CHUNK)?.checked_add(page)?;
            // Rust's slices, and pointers' offsets, end there.
            (total <= isize::MAX as usize).then_some(Self { len, span, total })
        };
        layout().ok_or(Error::new(Operation::Reserve, ErrorKind::TooLong).value(len))
    }

    /// The offset of the arena's first byte in a mapping of `total` bytes at `base`.
    pub(crate) fn offset(&self, base: usize) -> usize {
        let first = round_up(base + page_size(), CHUNK).unwrap_or(base);
        first - base
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn layouts_hold_their_bytes_and_guards(
            len in 1usize..1 << 46,
            base in 16usize..1 << 33,
            huge: bool,
        ) {
            let page = page_size();
            let base = base * page;
            let unit = if huge { CHUNK } else { page };
            let layout = Layout::new(len, unit).unwrap();
            let first = base + layout.offset(base);
            prop_assert!(layout.len >= len && layout.len - len < unit);
            prop_assert_eq!(first % CHUNK, 0);
            prop_assert_eq!(layout.len % unit, 0);
            prop_assert!(first - base >= page);
            prop_assert!(layout.span - layout.len >= page);
            prop_assert_eq!(layout.span % CHUNK, 0);
            prop_assert!(first + layout.span <= base + layout.total);
        }
    }

    #[test]
    fn impossible_lengths_are_refused() {
        assert_eq!(Layout::new(0, page_size()).unwrap_err().kind(), ErrorKind::ZeroLength);
        for len in [usize::MAX, usize::MAX - 4095, isize::MAX as usize, usize::MAX - CHUNK] {
            assert_eq!(Layout::new(len, page_size()).unwrap_err().kind(), ErrorKind::TooLong);
        }
    }
}
