//! A rival: private memory with a copy of the image, write-protected; the kernel lifts that by itself
//! from a page that is written (`WP_ASYNC`), PAGEMAP_SCAN tells which those are and protects them again,
//! and the image is copied over them. Linux 6.7.

use crate::common::memory::Mapping;
use lacuna::uffd::{Features, RegisterMode, Uffd, WriteProtectMode};
use linux_raw_sys::general::{PAGE_IS_WRITTEN, PM_SCAN_WP_MATCHING, page_region, pm_scan_arg};
use std::fs::File;
use std::os::fd::AsRawFd;

/// Memory that is all there, and knows which of its pages were written.
pub(crate) struct Tracked {
    memory: Mapping,
    image: Vec<u8>,
    pagemap: File,
    runs: Vec<page_region>,
    /// Keeps the memory registered.
    _uffd: Uffd,
}

impl Tracked {
    pub(crate) fn new(image: &[u8]) -> Self {
        let memory = Mapping::small_pages(image.len());
        let uffd = Uffd::builder()
            .features(Features::WP_ASYNC | Features::WP_UNPOPULATED)
            .open()
            .expect("WP_ASYNC, since Linux 6.7");
        // SAFETY: the mapping is new and as long as the image; nobody else knows it.
        unsafe {
            memory.base().copy_from_nonoverlapping(image.as_ptr(), image.len());
            uffd.register(memory.base(), image.len(), RegisterMode::WP).expect("it can be");
            let protect = WriteProtectMode::WP;
            uffd.write_protect(memory.base(), image.len(), protect).expect("it can be");
        }
        let pagemap = File::open("/proc/self/pagemap").expect("/proc is mounted");
        let runs = vec![page_region { start: 0, end: 0, categories: 0 }; 4096];
        Self { memory, image: image.to_vec(), pagemap, runs, _uffd: uffd }
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.memory.base()
    }

    /// Copies the image over what was written.
    pub(crate) fn restore(&mut self) {
        let base = self.base();
        for run in self.written() {
            let offset = run.start as usize - base.addr();
            let len = (run.end - run.start) as usize;
            // SAFETY: the run lies in the memory, which is as long as the image.
            unsafe {
                base.add(offset).copy_from_nonoverlapping(self.image[offset..].as_ptr(), len);
            };
        }
        // The copies count as written: protected only now.
        self.scan(PM_SCAN_WP_MATCHING);
    }

    fn written(&mut self) -> Vec<page_region> {
        let count = self.scan(0);
        self.runs[..count].to_vec()
    }

    /// The runs of written pages. Only this one category is asked for, which the kernel has a faster
    /// way for.
    fn scan(&mut self, flags: u32) -> usize {
        const REQUEST: libc::c_ulong =
            nix::request_code_readwrite!(b'f', 16, size_of::<pm_scan_arg>());
        // SAFETY: zeroes are a valid request for nothing.
        let mut request: pm_scan_arg = unsafe { std::mem::zeroed() };
        request.size = size_of::<pm_scan_arg>() as u64;
        request.flags = u64::from(flags);
        request.start = self.base().addr() as u64;
        request.end = request.start + self.image.len() as u64;
        request.vec = self.runs.as_mut_ptr().addr() as u64;
        request.vec_len = self.runs.len() as u64;
        request.category_mask = u64::from(PAGE_IS_WRITTEN);
        request.return_mask = u64::from(PAGE_IS_WRITTEN);
        // SAFETY: the kernel writes at most `vec_len` runs to `vec`.
        let count = unsafe { libc::ioctl(self.pagemap.as_raw_fd(), REQUEST, &raw mut request) };
        assert!(count >= 0, "PAGEMAP_SCAN: {}", std::io::Error::last_os_error());
        count as usize
    }
}
