//! What an arena's memory is made of: private pages, huge pages out of the system's pool, or a file
//! in memory that other processes map as well.

use super::mapping::{Layout, Mapping};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backing::Backing;
use crate::page::{CHUNK_SHIFT, page_shift, page_size};
use crate::sys;
use nix::errno::Errno;
use nix::sys::mman::MapFlags;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The size of an arena's pages; see [`ArenaBuilder::page_size`](super::ArenaBuilder::page_size).
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
