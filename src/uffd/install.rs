//! The operations that put something into missing pages. Each may stop halfway, so each returns
//! [`Progress`].

use super::register::range;
use super::{ContinueMode, CopyMode, MoveMode, PoisonMode, Progress, Uffd, ZeropageMode, abi};
use crate::error::Operation;
use std::os::fd::AsFd;

impl<F: AsFd> Uffd<F> {
    /// `UFFDIO_COPY`: fills `len` bytes of missing pages at `dst` with a copy of the bytes at `src`.
    /// Since Linux 4.3.
    ///
    /// Each page appears at once, with its contents: nobody ever sees a page half filled. `dst` and
    /// `len` are multiples of the page size; `src` need not be aligned. A page that is present is
    /// never overwritten, but a marker in place of a page is: write protection of a missing page,
    /// poison, and guard pages (`MADV_GUARD_INSTALL`) go. Pages can be installed whatever the
    /// protection of the mapping, which is applied when they are accessed.
    ///
    /// The range must lie inside one mapping: mprotect(2) or madvise(2) on a part splits it.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_COPY.
    ///
    /// ```
    /// use lacuna::Errno;
    /// use lacuna::uffd::{CopyMode, RegisterMode, Uffd};
    /// use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
    /// use std::num::NonZeroUsize;
    ///
    /// let page = lacuna::page_size();
    /// let len = NonZeroUsize::new(2 * page).unwrap();
    /// let uffd = Uffd::builder().open()?;
    /// # let (prot, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
    /// // SAFETY: a new mapping, placed by the kernel.
    /// let memory = unsafe { mmap_anonymous(None, len, prot, flags) }?.cast::<u8>().as_ptr();
    /// let content = vec![7; 2 * page];
    /// // SAFETY: nobody else knows this mapping, and `content` is that long.
    /// unsafe {
    ///     uffd.register(memory, 2 * page, RegisterMode::MISSING)?;
    ///     uffd.copy(memory, content.as_ptr(), 2 * page, CopyMode::empty()).into_result()?;
    ///     assert_eq!(memory.add(page).read(), 7);
    ///
    ///     let again = uffd.copy(memory, content.as_ptr(), page, CopyMode::empty());
    ///     assert_eq!((again.bytes(), again.errno()), (0, Some(Errno::EEXIST)));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Progress::errno`] is one of
    ///
    /// - `EAGAIN`: a part was done, see [`Progress`]; or, with nothing done, the memory map is
    ///   changing: try again.
    /// - `EEXIST`: the first page is present. A page table that the kernel is changing at the moment
    ///   (a huge page being split) looks the same.
    /// - `ENOENT`: the range is not mapped, not registered, or not inside one mapping.
    /// - `EINVAL`: the range is empty, unaligned or outside the address space, or `mode` is
    ///   unsupported, or [`CopyMode::WP`] without [`RegisterMode::WP`](super::RegisterMode::WP).
    /// - `EFAULT`: `src` cannot be read (it may itself lie in missing pages), or `dst` lies past
    ///   the end of a shared file.
    /// - `ENOMEM`: no memory, or the control group's limit is reached.
    /// - `ESRCH`: the process that opened the userfaultfd is gone (Linux 4.11 and 4.12: `ENOSPC`).
    ///
    /// # Safety
    ///
    /// `src` must be valid for reads of `len` bytes that nobody writes meanwhile. The bytes must be
    /// valid contents for whatever type is, or will be, accessed at `dst`; and whoever uses that
    /// memory must be prepared for pages to appear there. If the userfaultfd belongs to another
    /// process, `dst` is an address there, and `src` one here.
    #[doc(alias = "UFFDIO_COPY")]
    pub unsafe fn copy(
        &self,
        dst: *mut u8,
        src: *const u8,
        len: usize,
        mode: CopyMode,
    ) -> Progress {
        let mut argument = abi::uffdio_copy {
            dst: dst.expose_provenance() as u64,
            src: src.expose_provenance() as u64,
            len: len as u64,
            mode: mode.bits(),
            copy: 0,
        };
        // SAFETY: a userfaultfd, and the argument of this request; what it does to `dst` is what
        // the caller answers for.
        let outcome = unsafe { abi::copy(self.raw(), &raw mut argument) };
        Progress::new(Operation::Copy, argument.dst, argument.len, argument.copy, outcome)
    }

    /// `UFFDIO_ZEROPAGE`: fills the missing pages among the `len` bytes from `start` with zeros.
    /// Since Linux 4.3.
    ///
    /// On private memory it maps the kernel's one page of zeros, so it costs no memory: a later
    /// write, the kernel's included, is an ordinary copy-on-write without a fault of this
    /// userfaultfd. Nor does it overwrite a marker (write protection of a missing page, poison,
    /// guard page), which stays in force. On shared memory it allocates pages and overwrites
    /// markers, as [`Uffd::copy`] does. It does not work on hugetlbfs. The range must lie inside one
    /// mapping.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_ZEROPAGE.
    ///
    /// # Errors
    ///
    /// [`Progress::errno`] as for [`Uffd::copy`], except that on private memory `EEXIST` may also mean
    /// a marker, which does not make the page accessible, and that `EINVAL` includes hugetlbfs.
    ///
    /// # Safety
    ///
    /// Zeros must be valid contents for whatever type is, or will be, accessed there; and whoever
    /// uses that memory must be prepared for pages to appear.
    #[doc(alias = "UFFDIO_ZEROPAGE")]
    pub unsafe fn zeropage(&self, start: *mut u8, len: usize, mode: ZeropageMode) -> Progress {
        let mut argument =
            abi::uffdio_zeropage { range: range(start, len), mode: mode.bits(), zeropage: 0 };
        // SAFETY: as in `copy`.
        let outcome = unsafe { abi::zeropage(self.raw(), &raw mut argument) };
        let abi::uffdio_range { start, len } = argument.range;
        Progress::new(Operation::Zeropage, start, len, argument.zeropage, outcome)
    }

    /// `UFFDIO_CONTINUE`: maps pages that the page cache has into the `len` bytes from `start`.
    /// Since Linux 5.13 on hugetlbfs, 5.14 on shared memory.
    ///
    /// Resolves faults of [`RegisterMode::MINOR`](super::RegisterMode::MINOR). The contents are
    /// what the file has there, usually written through a second mapping that is not registered.
    /// A private mapping keeps what is written to it later to itself. The range must lie inside one
    /// mapping.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_CONTINUE.
    ///
    /// # Errors
    ///
    /// [`Progress::errno`] is one of
    ///
    /// - `EAGAIN`, `ENOENT`, `ENOMEM`, `ESRCH`: as for [`Uffd::copy`].
    /// - `EEXIST`: the first page is mapped.
    /// - `EFAULT`: the page cache does not have the first page.
    /// - `EINVAL`: as for [`Uffd::copy`], or the memory is anonymous.
    ///
    /// # Safety
    ///
    /// What the page cache has must be valid contents for whatever type is, or will be, accessed
    /// there; and whoever uses that memory must be prepared for pages to appear.
    #[doc(alias = "UFFDIO_CONTINUE")]
    pub unsafe fn r#continue(&self, start: *mut u8, len: usize, mode: ContinueMode) -> Progress {
        let mut argument =
            abi::uffdio_continue { range: range(start, len), mode: mode.bits(), mapped: 0 };
        // SAFETY: as in `copy`.
        let outcome = unsafe { abi::continue_(self.raw(), &raw mut argument) };
        let abi::uffdio_range { start, len } = argument.range;
        Progress::new(Operation::Continue, start, len, argument.mapped, outcome)
    }

    /// `UFFDIO_POISON`: marks the missing pages among the `len` bytes from `start` as lost. Since
    /// Linux 6.6.
    ///
    /// Touching such a page raises SIGBUS, whatever the mode of the userfaultfd: `BUS_MCEERR_AR`, as
    /// for broken memory, or `BUS_ADRERR` where the kernel is built without `CONFIG_MEMORY_FAILURE`;
    /// a system call fails. Only page table entries are marked, nothing happens to physical
    /// memory. [`Uffd::copy`] and `MADV_DONTNEED` remove the mark. The range must lie inside one
    /// mapping.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_POISON.
    ///
    /// # Errors
    ///
    /// [`Progress::errno`] as for [`Uffd::copy`], except that `EEXIST` may also mean a marker, poison
    /// included.
    ///
    /// # Safety
    ///
    /// Whoever uses that memory must be prepared for the SIGBUS.
    #[doc(alias = "UFFDIO_POISON")]
    pub unsafe fn poison(&self, start: *mut u8, len: usize, mode: PoisonMode) -> Progress {
        let mut argument =
            abi::uffdio_poison { range: range(start, len), mode: mode.bits(), updated: 0 };
        // SAFETY: as in `copy`.
        let outcome = unsafe { abi::poison(self.raw(), &raw mut argument) };
        let abi::uffdio_range { start, len } = argument.range;
        Progress::new(Operation::Poison, start, len, argument.updated, outcome)
    }

    /// `UFFDIO_MOVE`: moves `len` bytes of pages from `src` to the missing pages at `dst`, without
    /// copying them. Since Linux 6.8.
    ///
    /// Both ranges belong to the calling process; `dst` is registered with *this* userfaultfd,
    /// `src` need not be registered. Both are private anonymous memory of the same protection,
    /// writable, locked both or neither, and each lies inside one mapping. Afterwards the pages at
    /// `src` are missing. A huge page is moved whole if both addresses are aligned to it and `dst`
    /// has no page table there; otherwise it is split.
    ///
    /// See ioctl_userfaultfd(2), UFFDIO_MOVE.
    ///
    /// # Errors
    ///
    /// [`Progress::errno`] is one of
    ///
    /// - `EAGAIN`: as for [`Uffd::copy`].
    /// - `EEXIST`: the first page at `dst` is present.
    /// - `ENOENT`: the first page at `src` is missing, without [`MoveMode::ALLOW_SRC_HOLES`]; or a
    ///   range is not mapped.
    /// - `EBUSY`: the first page at `src` is pinned, or shared with another process: fork(2) shares
    ///   pages, and they count as shared until they are written again.
    /// - `EINVAL`: a range is empty, unaligned, or not of the kind described; `mode` is
    ///   unsupported; or the userfaultfd was opened by another process.
    /// - `ENOMEM`: no memory for page tables.
    ///
    /// # Safety
    ///
    /// The bytes at `src` must be valid contents for whatever type is, or will be, accessed at
    /// `dst`; whoever uses the memory at `dst` must be prepared for pages to appear. The memory at
    /// `src` must be the caller's alone, and valid with its pages missing: they read as zero, or
    /// fault where `src` is registered.
    #[doc(alias = "UFFDIO_MOVE")]
    pub unsafe fn move_pages(
        &self,
        dst: *mut u8,
        src: *mut u8,
        len: usize,
        mode: MoveMode,
    ) -> Progress {
        let mut argument = abi::uffdio_move {
            dst: dst.expose_provenance() as u64,
            src: src.expose_provenance() as u64,
            len: len as u64,
            mode: mode.bits(),
            move_: 0,
        };
        // SAFETY: as in `copy`; the caller answers for `src` too, which loses its pages.
        let outcome = unsafe { abi::move_pages(self.raw(), &raw mut argument) };
        Progress::new(Operation::Move, argument.dst, argument.len, argument.move_, outcome)
    }
}
