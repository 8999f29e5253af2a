//! Mappings for the rivals, and the kernel's word on what is in them.

use super::{MIB, page};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

/// Bytes of a huge page, which mappings are aligned to.
pub(crate) const HUGE: usize = 2 * MIB;

/// Memory with inaccessible guards around it, so that the kernel does not merge it with other
/// memory. New to the process when made, gone when dropped.
pub(crate) struct Mapping {
    reserved: *mut u8,
    total: usize,
    base: *mut u8,
    len: usize,
}

// SAFETY: it owns an address range and hands out its address only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes with this protection and madvise(2) advice.
    pub(crate) fn new(len: usize, protection: i32, advice: i32) -> Self {
        let len = len.next_multiple_of(page());
        let total = len + 2 * HUGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping, placed by the kernel.
        let reserved = unsafe { libc::mmap(ptr::null_mut(), total, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(reserved, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        let reserved = reserved.cast::<u8>();
        let base = reserved.wrapping_add(HUGE - reserved.addr() % HUGE);
        let mapping = Self { reserved, total, base, len };
        mapping.protect(0..len, protection);
        mapping.advise(advice);
        mapping
    }

    /// Readable and writable memory that the kernel fills in base pages.
    pub(crate) fn small_pages(len: usize) -> Self {
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MADV_NOHUGEPAGE)
    }

    /// Readable and writable memory that the kernel may fill in huge pages.
    pub(crate) fn huge_pages(len: usize) -> Self {
        Self::new(len, libc::PROT_READ | libc::PROT_WRITE, libc::MADV_HUGEPAGE)
    }

    /// All of a file, mapped privately.
    pub(crate) fn private(file: &File) -> Self {
        let mapping = Self::small_pages(file.metadata().expect("it is there").len() as usize);
        let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (start, fd) = (mapping.base.cast(), file.as_raw_fd());
        // SAFETY: it replaces the mapping, which is new, by one of the same size.
        let address = unsafe { libc::mmap(start, mapping.len, protection, flags, fd, 0) };
        assert_eq!(address, start, "mmap: {}", std::io::Error::last_os_error());
        mapping
    }

    pub(crate) fn base(&self) -> *mut u8 {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// mprotect(2).
    pub(crate) fn protect(&self, range: Range<usize>, protection: i32) {
        assert!(range.end <= self.len);
        // SAFETY: the range lies in this mapping.
        let result =
            unsafe { libc::mprotect(self.base.add(range.start).cast(), range.len(), protection) };
        assert_eq!(result, 0, "mprotect: {}", std::io::Error::last_os_error());
    }

    /// madvise(2) on all of it.
    pub(crate) fn advise(&self, advice: i32) {
        // SAFETY: the range lies in this mapping; who calls this has no references into it.
        let result = unsafe { libc::madvise(self.base.cast(), self.len, advice) };
        assert_eq!(result, 0, "madvise: {}", std::io::Error::last_os_error());
    }

    /// Writes `value` over all of it.
    pub(crate) fn fill(&mut self, value: u32) {
        // SAFETY: the mapping is writable, aligned, and borrowed exclusively.
        let words =
            unsafe { std::slice::from_raw_parts_mut(self.base.cast::<u32>(), self.len / 4) };
        words.fill(value);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the owner goes, and with it the last user of the memory.
        unsafe { libc::munmap(self.reserved.cast(), self.total) };
    }
}

/// Has the machine's free memory be memory: a virtual machine's host takes back what is free for a
/// while, and the next touch of it costs the host's fault besides, for whichever rival's turn it is.
pub(crate) fn warm(len: usize) {
    let mapping = Mapping::huge_pages(len);
    mapping.advise(libc::MADV_POPULATE_WRITE);
}

/// Minor faults of this process so far.
pub(crate) fn minor_faults() -> u64 {
    // SAFETY: zeroes are a valid rusage, which getrusage(2) overwrites.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    usage.ru_minflt as u64
}

/// Bytes of memory in the `len` bytes from `base`, as the kernel counts them: the sum of `Rss` in
/// `/proc/self/smaps`. Pages that show the kernel's zero page are none.
pub(crate) fn resident(base: *const u8, len: usize) -> usize {
    let wanted = base.addr()..base.addr() + len;
    let smaps = File::open("/proc/self/smaps").expect("/proc is there");
    let mut inside = false;
    let mut sum = 0;
    for line in BufReader::with_capacity(MIB, smaps).lines() {
        let line = line.expect("smaps is text");
        if let Some(range) = addresses(&line) {
            inside = wanted.contains(&range.start);
        } else if inside && let Some(rest) = line.strip_prefix("Rss:") {
            sum += kibibytes(rest);
        }
    }
    sum
}

/// A field of `/proc/self/status`, in bytes.
pub(crate) fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc is there");
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    kibibytes(line.expect("the kernel has this field"))
}

/// Lines of `/proc/self/maps`: what max_map_count bounds.
pub(crate) fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("/proc is there").lines().count()
}

/// The first line of a mapping begins with its addresses: "7f00-7f10 rw-p ...".
fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, rest) = line.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(rest.split(' ').next()?, 16).ok()?;
    Some(start..end)
}

fn kibibytes(text: &str) -> usize {
    let number = text.trim().trim_end_matches("kB").trim();
    number.parse::<usize>().expect("a number of kibibytes") << 10
}

/// A file in memory with this content.
pub(crate) fn memfd(content: &[u8]) -> File {
    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC);
        assert!(descriptor >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    };
    file.write_all(content).expect("there is memory");
    file
}
