//! What the tests of `lacuna::uffd` share: mappings, SIGBUS handling per thread, tests that rerun
//! themselves in a process of their own.

#![allow(dead_code, reason = "every test binary uses its own part of this module")]

pub(crate) mod process;
pub(crate) mod sigbus;

use lacuna::Errno;
use lacuna::uffd::{CopyMode, Features, Progress, RegisterMode, Uffd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::fs::File;
use std::io::Write;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;

pub(crate) const RW: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

pub(crate) fn page() -> usize {
    lacuna::page_size()
}

/// Memory of the test's own, unmapped at the end.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the tests only access it through raw pointers, volatile, one thread at a time.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn anonymous(pages: usize) -> Self {
        Self::with_protection(pages, RW)
    }

    pub(crate) fn with_protection(pages: usize, protection: ProtFlags) -> Self {
        let len = NonZeroUsize::new(pages * page()).unwrap();
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE) };
        Self { start: start.unwrap().cast(), len: len.get() }
    }

    pub(crate) fn file(file: &File, pages: usize, flags: MapFlags) -> Self {
        Self::file_with_protection(file, pages, flags, RW)
    }

    pub(crate) fn file_with_protection(
        file: impl AsFd,
        pages: usize,
        flags: MapFlags,
        protection: ProtFlags,
    ) -> Self {
        let len = NonZeroUsize::new(pages * page()).unwrap();
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe { mmap(None, len, protection, flags, file, 0) };
        Self { start: start.unwrap().cast(), len: len.get() }
    }

    /// The address of page `index`, which may lie past the end.
    pub(crate) fn at(&self, index: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(index * page())
    }

    pub(crate) fn start(&self) -> *mut u8 {
        self.at(0)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads the first byte of page `index`; this may be a fault.
    pub(crate) fn read(&self, index: usize) -> u8 {
        assert!(index * page() < self.len);
        // SAFETY: inside the mapping, and any byte is a `u8`.
        unsafe { self.at(index).read_volatile() }
    }

    /// Writes the first byte of page `index`; this may be a fault.
    pub(crate) fn write(&self, index: usize, value: u8) {
        assert!(index * page() < self.len);
        // SAFETY: inside the mapping, which nobody else writes.
        unsafe { self.at(index).write_volatile(value) }
    }

    /// The whole of page `index`.
    pub(crate) fn bytes(&self, index: usize) -> Vec<u8> {
        let mut bytes = vec![0; page()];
        assert!(index * page() < self.len);
        // SAFETY: inside the mapping, which nobody writes meanwhile.
        unsafe { self.at(index).copy_to_nonoverlapping(bytes.as_mut_ptr(), page()) };
        bytes
    }

    pub(crate) fn advise(&self, first: usize, pages: usize, advice: libc::c_int) {
        // SAFETY: inside the mapping, which is the test's own.
        let outcome = unsafe { libc::madvise(self.at(first).cast(), pages * page(), advice) };
        assert_eq!(outcome, 0, "madvise: {}", std::io::Error::last_os_error());
    }

    pub(crate) fn protect(&self, first: usize, pages: usize, protection: ProtFlags) {
        let len = pages * page();
        // SAFETY: inside the mapping, which is the test's own.
        let outcome = unsafe { libc::mprotect(self.at(first).cast(), len, protection.bits()) };
        assert_eq!(outcome, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    /// Forgets the mapping, which somebody else has unmapped.
    pub(crate) fn gone(self) {
        std::mem::forget(self);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody has pointers into it any more.
        unsafe { munmap(self.start.cast(), self.len) }.unwrap();
    }
}

pub(crate) fn memfd(pages: usize) -> File {
    let file = File::from(memfd_create(c"uffd-test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len((pages * page()) as u64).unwrap();
    file
}

/// What memory a test runs on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Memory {
    Anonymous,
    Shared,
    PrivateFile,
}

impl Memory {
    pub(crate) const ALL: [Self; 3] = [Self::Anonymous, Self::Shared, Self::PrivateFile];

    pub(crate) fn map(self, pages: usize) -> Mapping {
        match self {
            Self::Anonymous => Mapping::anonymous(pages),
            Self::Shared => Mapping::file(&memfd(pages), pages, MapFlags::MAP_SHARED),
            Self::PrivateFile => Mapping::file(&memfd(pages), pages, MapFlags::MAP_PRIVATE),
        }
    }
}

pub(crate) fn open(features: Features) -> Uffd {
    Uffd::builder().features(features).nonblocking(true).open().unwrap()
}

/// Registers the whole mapping.
pub(crate) fn register(uffd: &Uffd, mapping: &Mapping, mode: RegisterMode) {
    // SAFETY: the mapping is the test's own.
    unsafe { uffd.register(mapping.start(), mapping.len(), mode) }.unwrap();
}

/// Anonymous memory, registered for missing pages with a userfaultfd of its own.
pub(crate) fn missing(pages: usize) -> (Uffd, Mapping) {
    let (uffd, mapping) = (open(Features::SIGBUS), Mapping::anonymous(pages));
    register(&uffd, &mapping, RegisterMode::MISSING);
    (uffd, mapping)
}

/// Fills page `index` with `value`.
pub(crate) fn fill(uffd: &Uffd, mapping: &Mapping, index: usize, value: u8) {
    let source = vec![value; page()];
    // SAFETY: the mapping is the test's own, and the source one page long.
    let progress =
        unsafe { uffd.copy(mapping.at(index), source.as_ptr(), page(), CopyMode::empty()) };
    assert_eq!(progress.into_result(), Ok(page()));
}

/// Whether the kernel has `features`. If not, says so where no test harness hides it.
pub(crate) fn supported(features: Features) -> bool {
    let missing = features - Uffd::probe().unwrap().features;
    if !missing.is_empty() {
        loudly(&format!("NOT TESTED, this kernel lacks {missing:?}"));
    }
    missing.is_empty()
}

/// Writes a line to stderr past the harness, which captures `eprintln!`.
pub(crate) fn loudly(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Start and length of ranges that no operation takes.
pub(crate) fn bad_ranges(mapping: &Mapping) -> [(*mut u8, usize); 4] {
    let (start, len) = (mapping.start(), page());
    let top = std::ptr::without_provenance_mut(usize::MAX & !(page() - 1));
    [(start, 0), (start, len + 1), (start.wrapping_add(1), len), (top, len)]
}

/// An address below everything that the kernel ever maps by itself.
pub(crate) fn unmapped() -> *mut u8 {
    std::ptr::without_provenance_mut(1 << 20)
}

/// Nothing was done, for this reason.
pub(crate) fn assert_nothing(progress: Progress, errno: Errno) {
    assert_eq!((progress.bytes(), progress.errno()), (0, Some(errno)), "{progress:?}");
}
