//! What an arena's memory is made of: private pages, huge pages out of the system's pool, or a file
//! in memory that other processes map as well.

use super::ArenaBuilder;
use super::mapping::{Layout, Mapping};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backing::Backing;
use crate::page::{CHUNK_SHIFT, page_shift, page_size};
use crate::sys;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The size of an arena's pages; see [`ArenaBuilder::page_size`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageSize {
    /// The operating system's base page: [`page_size`](crate::page_size).
    #[default]
    Base,
    /// 2 MiB pages out of the pool that an administrator has set aside (hugetlbfs;
    /// `vm.nr_hugepages`, `vm.nr_overcommit_hugepages`).
    Huge,
}

/// Whether other processes are to map the memory as well.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sharing<'a> {
    No,
    /// A memfd that is made for the arena.
    New,
    /// The program's file.
    With(BorrowedFd<'a>),
}

impl<'a> ArenaBuilder<'a> {
    /// The size of the arena's pages; base pages by default.
    ///
    /// With [`PageSize::Huge`] a page is 2 MiB of hugetlbfs's pool: one fault resolves it, and it is
    /// the unit of everything that is otherwise one of base pages: length, budget, limit, discard
    /// ([`Arena::page_size`](super::Arena::page_size) tells). The kernel never splits it nor swaps it
    /// out; and it is there or it is not: when the pool is empty, a touch is a violation
    /// ([`Bound::NoHugePages`](crate::Bound::NoHugePages)). A page function is still called for base
    /// pages, 512 times for each.
    ///
    /// Pages are taken from the pool as they are touched, not when the arena is reserved, so that a
    /// reservation may be larger than the pool. A forked child shares them until either side writes;
    /// the copy that is needed then comes from the pool too, and without one that write is a
    /// violation. What a child does not inherit ([`on_fork`](Self::on_fork)) is emptied by the fork
    /// hook, since the kernel cannot. In `/proc/self/smaps` they are `Private_Hugetlb` and
    /// `Shared_Hugetlb`, not `Rss`. They need userfaultfd, and a discard needs Linux 5.18.
    ///
    /// An arena whose template is a repeated value, or an image that ends within a page, has one page
    /// of ordinary memory for that; a page function has eight.
    ///
    /// ```no_run
    /// use lacuna::{Arena, ErrorKind, PageSize};
    ///
    /// match Arena::builder(1 << 40).page_size(PageSize::Huge).reserve() {
    ///     Ok(arena) => assert_eq!(arena.page_size(), 2 << 20),
    ///     // echo 512 > /proc/sys/vm/nr_hugepages
    ///     Err(error) => assert_eq!(error.kind(), ErrorKind::NoHugePages),
    /// }
    /// ```
    pub const fn page_size(mut self, size: PageSize) -> Self {
        self.page_size = Some(size);
        self
    }

    /// Makes the arena of memory that other processes can map too: a memfd that is made for it, of
    /// the arena's length, which nobody can cut short. [`Arena::memfd`](super::Arena::memfd) tells what
    /// to send them, for [`memfd`](Self::memfd).
    ///
    /// Each process that maps it has an arena of its own, and resolves its own faults: who touches a
    /// page first installs it, for all of them. A page that another process has installed already is
    /// mapped by the kernel, without a signal. So all of them must give the **same template**, or it
    /// depends on who is first what a page contains.
    ///
    /// - Budget, limit and statistics are each process's own, of the pages that *it* installed.
    ///   [`Arena::populate`](super::Arena::populate) and
    ///   [`Arena::measure`](super::Arena::measure) take on those of others that this process has
    ///   mapped. Zeroes that are only read are memory here.
    /// - [`Arena::discard`](super::Arena::discard) and [`Arena::reset`](super::Arena::reset) give pages
    ///   back for everybody, whoever installed them. Other processes go on counting them until they
    ///   measure, or touch them again.
    /// - A process that dies leaves what it installed to the others.
    /// - A forked child shares the memory with its parent, and begins with its parent's counters
    ///   ([`OnFork::Inherit`](crate::OnFork::Inherit)), or must not touch it
    ///   ([`OnFork::Forbid`](crate::OnFork::Forbid)); [`OnFork::Wipe`](crate::OnFork::Wipe) is refused.
    ///   A child without the C library's fork hooks does not get it at all.
    /// - Whoever maps the file **without an arena**, or writes to it by write(2), fills pages that it does
    ///   not have yet with zeroes, for everybody.
    /// - It needs userfaultfd. Heaps and sparse arrays cannot be made of it, nor is anything lent.
    ///
    /// ```
    /// # if lacuna::Arena::builder(1).reserve()?.backend() == lacuna::Backend::Mprotect { return Ok(()) }
    /// let seven = lacuna::Template::repeat(&7u8)?;
    /// let ours = lacuna::Arena::builder(1 << 30).template(seven.clone()).share().reserve()?;
    /// // Most often in another process, which has got the descriptor.
    /// let file = ours.memfd().unwrap();
    /// let theirs = lacuna::Arena::builder(1 << 30).template(seven).memfd(&file).reserve()?;
    /// // SAFETY: the byte is within the arenas, and nobody else uses it.
    /// unsafe {
    ///     ours.as_ptr().write(1);
    ///     assert_eq!(theirs.as_ptr().read(), 1);
    ///     assert_eq!(theirs.as_ptr().add(1).read(), 7);
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub const fn share(mut self) -> Self {
        self.sharing = Sharing::New;
        self
    }

    /// As [`share`](Self::share), of a file in memory that there is already: a memfd, or a file on
    /// tmpfs or hugetlbfs, that is open for reading and writing and at least as long as the arena.
    /// Its first byte is the arena's.
    ///
    /// What it contains stays as it is; the template is for the pages that it does not have. If its
    /// pages are huge ones (`MFD_HUGETLB`), the arena's are: see [`page_size`](Self::page_size), which
    /// need not be said. Should it be cut short later, a touch past its end is a violation
    /// ([`Bound::MemoryCutShort`](crate::Bound::MemoryCutShort)); `F_SEAL_SHRINK` keeps others from
    /// doing so.
    ///
    /// The arena keeps a descriptor of its own.
    pub fn memfd<F: AsFd>(mut self, file: &'a F) -> Self {
        self.sharing = Sharing::With(file.as_fd());
        self
    }

    pub(crate) fn is_shared(&self) -> bool {
        !matches!(self.sharing, Sharing::No)
    }
}

/// What was asked for, checked: how large pages are is known before anything is mapped.
pub(super) struct Plan<'a> {
    huge: bool,
    sharing: Sharing<'a>,
}

/// An arena's memory, mapped.
pub(super) struct Memory {
    pub(super) backing: Backing,
    /// The file, if it is shared.
    pub(super) file: Option<OwnedFd>,
}

impl<'a> Plan<'a> {
    /// What is asked for: `size` is the program's word on it, if it said one.
    pub(super) fn new(size: Option<PageSize>, sharing: Sharing<'a>) -> Result<Self> {
        let huge = match sharing {
            Sharing::With(file) => {
                let huge = has_huge_pages(file)?;
                if size.is_some_and(|size| (size == PageSize::Huge) != huge) {
                    return Err(Error::new(Operation::Reserve, ErrorKind::PageSizeMismatch));
                }
                huge
            }
            Sharing::No | Sharing::New => {
                let huge = size == Some(PageSize::Huge);
                if huge {
                    pool_has_pages()?;
                }
                huge
            }
        };
        Ok(Self { huge, sharing })
    }

    /// log2 of the page size.
    pub(super) fn page_shift(&self) -> u32 {
        if self.huge { CHUNK_SHIFT } else { page_shift() }
    }

    pub(super) fn is_huge(&self) -> bool {
        self.huge
    }

    pub(super) fn is_ordinary(&self) -> bool {
        !self.huge && matches!(self.sharing, Sharing::No)
    }

    pub(super) fn is_shared(&self) -> bool {
        !matches!(self.sharing, Sharing::No)
    }

    /// Maps the memory at `offset` of a reservation, accessible, but for private base pages, which
    /// every reservation is of.
    pub(super) fn map(
        &self,
        name: &str,
        reservation: &Mapping,
        offset: usize,
        layout: &Layout,
    ) -> Result<Memory> {
        let (huge, len) = (self.huge, layout.len);
        let file = match self.sharing {
            Sharing::No if !huge => return Ok(Memory { backing: Backing::Private, file: None }),
            Sharing::No => {
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB;
                reservation.replace(offset, len, flags, None)?;
                return Ok(Memory { backing: Backing::PrivateHuge, file: None });
            }
            Sharing::New => memfd(name, len, huge)?,
            Sharing::With(file) => sys::duplicate(file).map_err(failed)?,
        };
        let has = sys::file_len(file.as_raw_fd()).map_err(failed)?;
        if has < len as u64 {
            let error = Error::new(Operation::Reserve, ErrorKind::MemoryTooShort);
            return Err(error.value(has as usize));
        }
        reservation.replace(offset, len, MapFlags::MAP_SHARED, Some(file.as_fd()))?;
        if !huge {
            // Collapsing small pages to a huge one would fill those that are missing.
            reservation.forbid_huge_pages(offset, len)?;
        }
        Ok(Memory { backing: Backing::Shared { file: file.as_raw_fd(), huge }, file: Some(file) })
    }
}

fn failed(errno: Errno) -> Error {
    Error::os(Operation::ShareMemory, errno)
}

/// A file in memory of this length, which nobody can cut short.
fn memfd(name: &str, len: usize, huge: bool) -> Result<OwnedFd> {
    let name = CString::new(format!("lacuna:{name}")).unwrap_or_default();
    let kind = if huge { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
    let make = || {
        let file = sys::memfd(&name, libc::MFD_ALLOW_SEALING | kind)?;
        sys::set_file_len(file.as_fd(), len)?;
        sys::seal(file.as_fd(), libc::F_SEAL_SHRINK)?;
        Ok(file)
    };
    make().map_err(failed)
}

/// Whether the pages of a file in memory are huge ones.
fn has_huge_pages(file: BorrowedFd<'_>) -> Result<bool> {
    const TMPFS: u64 = libc::TMPFS_MAGIC as u64;
    const HUGETLBFS: u64 = libc::HUGETLBFS_MAGIC as u64;
    match sys::file_system(file).map_err(failed)? {
        (TMPFS, size) if size == page_size() => Ok(false),
        (HUGETLBFS, size) if size == 1 << CHUNK_SHIFT => Ok(true),
        (TMPFS | HUGETLBFS, size) => {
            Err(Error::new(Operation::Reserve, ErrorKind::PageSizeMismatch).value(size))
        }
        _ => Err(Error::new(Operation::Reserve, ErrorKind::NotMemory)),
    }
}

/// Fails if the pool has no page of 2 MiB to give, and may make none.
fn pool_has_pages() -> Result<()> {
    let number = |name: &str| {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    let free = || Some(number("free_hugepages")?.saturating_sub(number("resv_hugepages")?));
    let more =
        || Some(number("nr_overcommit_hugepages")?.saturating_sub(number("surplus_hugepages")?));
    match (free(), more()) {
        // Where we are not told, mmap(2) says whether there is such a pool.
        (Some(0), Some(0)) => Err(Error::new(Operation::Reserve, ErrorKind::NoHugePages)),
        _ => Ok(()),
    }
}
