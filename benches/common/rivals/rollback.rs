//! Ways of coming back to what memory held, after some pages of it were written.

use crate::common::memory::{Mapping, memfd};
use crate::common::page;
use lacuna::uffd::{Features, RegisterMode, Uffd, WriteProtectMode};
use lacuna::{Arena, Backend, Tracking};
use linux_raw_sys::general::{PAGE_IS_WRITTEN, PM_SCAN_WP_MATCHING, page_region, pm_scan_arg};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

/// Memory that holds [`BYTE`] everywhere, and comes back to that.
pub(crate) trait Rewinds {
    fn base(&self) -> *mut u8;

    /// What is done between rounds, and not timed.
    fn prepare(&mut self) {}

    fn rewind(&mut self);
}

/// What each byte is before it is written.
pub(crate) const BYTE: u8 = 1;

/// Makes memory of so many bytes.
pub(crate) type Make = Box<dyn Fn(usize) -> Box<dyn Rewinds>>;

/// Every way, by name.
pub(crate) fn all() -> Vec<(&'static str, Make)> {
    vec![
        ("memfd mapped privately, MADV_DONTNEED", Box::new(|len| private_file(len, false))),
        (
            "memfd mapped privately, MADV_DONTNEED, all of it mapped each round",
            Box::new(|len| private_file(len, true)),
        ),
        ("copying back by PAGEMAP_SCAN", Box::new(scan)),
        ("lacuna, Tracking::Kernel", Box::new(|len| ours(len, Tracking::Kernel))),
        ("lacuna, Tracking::Signal", Box::new(|len| ours(len, Tracking::Signal))),
    ]
}

/// A private mapping of a file in memory, which dropping what was written brings back.
struct PrivateFile {
    mapping: Mapping,
    populates: bool,
}

fn private_file(len: usize, populates: bool) -> Box<dyn Rewinds> {
    let mapping = Mapping::private(&memfd(&vec![BYTE; len]));
    Box::new(PrivateFile { mapping, populates })
}

impl Rewinds for PrivateFile {
    fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    fn prepare(&mut self) {
        if self.populates {
            self.mapping.advise(libc::MADV_POPULATE_READ);
        }
    }

    fn rewind(&mut self) {
        self.mapping.advise(libc::MADV_DONTNEED);
    }
}

/// Memory whose written pages the kernel tells, and a copy of it.
struct Scan {
    mapping: Mapping,
    copy: Mapping,
    pagemap: File,
    runs: Vec<page_region>,
    _uffd: Uffd,
}

fn scan(len: usize) -> Box<dyn Rewinds> {
    let features = Features::SIGBUS | Features::WP_ASYNC;
    let uffd = Uffd::builder().features(features).open().expect("Linux 6.7 and userfaultfd");
    let filled = || {
        let mapping = Mapping::small_pages(len);
        // SAFETY: the mapping is new, and so long.
        unsafe { mapping.base().write_bytes(BYTE, len) };
        mapping
    };
    let (mapping, copy) = (filled(), filled());
    // SAFETY: the mapping is new, and all of it present.
    unsafe {
        uffd.register(mapping.base(), len, RegisterMode::WP).expect("it can be registered");
        uffd.write_protect(mapping.base(), len, WriteProtectMode::WP).expect("and protected");
    }
    let pagemap = File::open("/proc/self/pagemap").expect("/proc is there");
    let runs = vec![page_region { start: 0, end: 0, categories: 0 }; len / page()];
    Box::new(Scan { mapping, copy, pagemap, runs, _uffd: uffd })
}

impl Scan {
    /// PAGEMAP_SCAN of all of it, asking for written pages alone; tells how many runs there are.
    fn ask(&mut self, flags: u32, tell: bool) -> usize {
        const REQUEST: libc::c_ulong =
            nix::request_code_readwrite!(b'f', 16, size_of::<pm_scan_arg>());
        // SAFETY: zeroes are a valid request for nothing.
        let mut request: pm_scan_arg = unsafe { std::mem::zeroed() };
        request.size = size_of::<pm_scan_arg>() as u64;
        request.flags = u64::from(flags);
        request.start = self.mapping.base().expose_provenance() as u64;
        request.end = request.start + self.mapping.len() as u64;
        if tell {
            request.vec = self.runs.as_mut_ptr().expose_provenance() as u64;
            request.vec_len = self.runs.len() as u64;
        }
        request.category_mask = u64::from(PAGE_IS_WRITTEN);
        request.return_mask = request.category_mask;
        let pagemap: RawFd = self.pagemap.as_raw_fd();
        // SAFETY: the kernel writes at most `vec_len` runs.
        let count = unsafe { libc::ioctl(pagemap, REQUEST, &raw mut request) };
        assert!(count >= 0, "PAGEMAP_SCAN: {}", std::io::Error::last_os_error());
        count as usize
    }
}

impl Rewinds for Scan {
    fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    fn rewind(&mut self) {
        let count = self.ask(0, true);
        for run in &self.runs[..count] {
            let (start, len) = (run.start as usize, (run.end - run.start) as usize);
            let target: *mut u8 = std::ptr::with_exposed_provenance_mut(start);
            let offset = start - self.mapping.base().addr();
            // SAFETY: the run lies in the mapping, the copy is as long.
            unsafe { target.copy_from_nonoverlapping(self.copy.base().add(offset), len) };
        }
        self.ask(PM_SCAN_WP_MATCHING, false);
    }
}

struct Ours(Arena);

fn ours(len: usize, tracking: Tracking) -> Box<dyn Rewinds> {
    let builder = Arena::builder(len).backend(Backend::Userfaultfd).tracking(tracking);
    // The rivals have small pages.
    let arena = builder.huge_pages(false).reserve().expect("userfaultfd is to be had");
    arena.populate(0..len).expect("there is memory");
    // SAFETY: the arena is so long, and nobody else's.
    unsafe { arena.as_ptr().write_bytes(BYTE, len) };
    arena.checkpoint().expect("the kernel has write protection");
    Box::new(Ours(arena))
}

impl Rewinds for Ours {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn rewind(&mut self) {
        // SAFETY: nobody has a reference into the arena.
        unsafe { self.0.rollback() }.expect("there is a checkpoint");
    }
}
