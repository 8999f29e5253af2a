//! hugetlbfs: every operation counts in huge pages there, which an administrator has to set aside. As
//! root these tests do that themselves, for the time they take.

mod uffd_support;

use lacuna::Errno;
use lacuna::uffd::{
    ContinueMode, CopyMode, Event, Features, Ioctls, PagefaultFlags, PoisonMode, RegisterMode,
    Uffd, WriteProtectMode, ZeropageMode,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::{File, read_to_string, write};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use uffd_support::sigbus::{Fault, resolving};
use uffd_support::{assert_nothing, loudly, open, page, supported};

/// Huge pages of a test.
const PAGES: usize = 2;
/// How many the system has set aside.
const RESERVED: &str = "/proc/sys/vm/nr_hugepages";

/// Huge pages that are there until this goes. One test at a time has them.
struct Reserved {
    size: usize,
    before: Option<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Best effort: somebody else may have changed it meanwhile.
            let _ = write(RESERVED, before);
        }
    }
}

/// A file of huge pages, and mappings of it.
struct Huge {
    start: NonNull<u8>,
    size: usize,
}

impl Reserved {
    /// Sees to it that there are huge pages; `None`, loudly, where there are none to be had.
    fn new() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let meminfo = read_to_string("/proc/meminfo").unwrap();
        let number = |name: &str| {
            let line = meminfo.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<usize>().ok()
        };
        let (Some(kib), Some(free)) = (number("Hugepagesize:"), number("HugePages_Free:")) else {
            loudly("NOT RUN: this kernel has no hugetlbfs");
            return None;
        };
        let mut reserved = Self { size: kib << 10, before: None, _alone: alone };
        if free < PAGES {
            let before = read_to_string(RESERVED).unwrap();
            let more = before.trim().parse::<usize>().unwrap() + PAGES;
            if write(RESERVED, more.to_string()).is_ok() {
                reserved.before = Some(before);
            }
        }
        match reserved.file() {
            Some(_) => Some(reserved),
            None => {
                loudly("NOT RUN: no huge pages are set aside (vm.nr_hugepages)");
                None
            }
        }
    }

    /// A file of [`PAGES`] huge pages, if there are as many.
    fn file(&self) -> Option<File> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB;
        let file = File::from(memfd_create(c"uffd-hugetlb", flags).ok()?);
        file.set_len((PAGES * self.size) as u64).ok()?;
        // A private mapping sets them aside for itself, or fails.
        Huge::try_map(&file, self.size, MapFlags::MAP_PRIVATE).map(|_| file)
    }

    fn map(&self, file: &File, flags: MapFlags) -> Huge {
        Huge::try_map(file, self.size, flags).expect("the huge pages that were there are gone")
    }

    /// Content for one page.
    fn content(&self, value: u8) -> Vec<u8> {
        vec![value; self.size]
    }
}

impl Huge {
    fn try_map(file: &File, size: usize, flags: MapFlags) -> Option<Self> {
        let len = NonZeroUsize::new(PAGES * size).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, placed by the kernel.
        let start = unsafe { mmap(None, len, protection, flags, file, 0) }.ok()?;
        Some(Self { start: start.cast(), size })
    }

    fn at(&self, index: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(index * self.size)
    }

    fn len(&self) -> usize {
        PAGES * self.size
    }

    /// The page that a fault is in.
    fn page_of(&self, fault: Fault) -> usize {
        (fault.address - self.start.as_ptr() as usize) / self.size
    }

    /// Reads a byte in the middle of page `index`.
    fn read(&self, index: usize) -> u8 {
        assert!(index < PAGES);
        // SAFETY: inside the mapping, and any byte is a `u8`.
        unsafe { self.at(index).add(self.size / 2 + 1).read_volatile() }
    }

    fn write(&self, index: usize, value: u8) {
        assert!(index < PAGES);
        // SAFETY: inside the mapping, which nobody else writes.
        unsafe { self.at(index).add(self.size / 2 + 1).write_volatile(value) }
    }

    fn register(&self, uffd: &Uffd, mode: RegisterMode) -> Ioctls {
        // SAFETY: the mapping is the test's own.
        unsafe { uffd.register(self.at(0), self.len(), mode) }.unwrap()
    }
}

impl Drop for Huge {
    fn drop(&mut self) {
        // SAFETY: nobody has pointers into it any more.
        unsafe { munmap(self.start.cast(), self.len()) }.unwrap();
    }
}

fn copy(uffd: &Uffd, huge: &Huge, index: usize, from: &[u8], mode: CopyMode) -> Option<Errno> {
    assert_eq!(from.len(), huge.size);
    // SAFETY: the mapping is the test's own, and the source one huge page.
    unsafe { uffd.copy(huge.at(index), from.as_ptr(), huge.size, mode) }.errno()
}

#[test]
fn missing_huge_pages_signal_once_each() {
    if !supported(Features::MISSING_HUGETLBFS) {
        return;
    }
    let Some(reserved) = Reserved::new() else { return };
    for flags in [MapFlags::MAP_SHARED, MapFlags::MAP_PRIVATE] {
        let file = reserved.file().unwrap();
        let (uffd, huge) = (open(Features::SIGBUS), reserved.map(&file, flags));
        let possible = huge.register(&uffd, RegisterMode::MISSING);
        assert!(possible.contains(Ioctls::COPY));
        assert!(!possible.contains(Ioctls::ZEROPAGE), "there is no huge page of zeroes");
        let content = reserved.content(9);
        // SAFETY: the mapping is the test's own, and the source one huge page.
        unsafe {
            let zero = uffd.zeropage(huge.at(0), huge.size, ZeropageMode::DONTWAKE);
            assert_nothing(zero, Errno::EINVAL);
            let part = uffd.copy(huge.at(0), content.as_ptr(), page(), CopyMode::DONTWAKE);
            assert_nothing(part, Errno::EINVAL);
        }
        let resolve = |fault| {
            let index = huge.page_of(fault);
            assert_eq!(copy(&uffd, &huge, index, &content, CopyMode::DONTWAKE), None);
        };
        let touch = || {
            for index in 0..PAGES {
                assert_eq!(huge.read(index), 9);
                huge.write(index, 1);
            }
        };
        assert_eq!(resolving(resolve, touch), PAGES, "{flags:?}");
        assert_eq!(copy(&uffd, &huge, 0, &content, CopyMode::DONTWAKE), Some(Errno::EEXIST));
    }
}

#[test]
fn minor_faults_of_huge_pages_are_continued() {
    if !supported(Features::MINOR_HUGETLBFS) {
        return;
    }
    let Some(reserved) = Reserved::new() else { return };
    let file = reserved.file().unwrap();
    let (huge, alias) =
        (reserved.map(&file, MapFlags::MAP_SHARED), reserved.map(&file, MapFlags::MAP_SHARED));
    (0..PAGES).for_each(|index| alias.write(index, index as u8 + 5));
    let uffd = open(Features::SIGBUS | Features::MINOR_HUGETLBFS);
    assert!(huge.register(&uffd, RegisterMode::MINOR).contains(Ioctls::CONTINUE));
    let resolve = |fault| {
        let at = huge.at(huge.page_of(fault));
        // SAFETY: the mapping is the test's own.
        let mapped = unsafe { uffd.r#continue(at, huge.size, ContinueMode::DONTWAKE) };
        assert_eq!(mapped.into_result(), Ok(huge.size));
    };
    let touch = || assert_eq!((huge.read(0), huge.read(1)), (5, 6));
    assert_eq!(resolving(resolve, touch), PAGES);
    huge.write(0, 7);
    assert_eq!(alias.read(0), 7, "it is the page that the file has");
}

/// The kind of the fault, where it is an event.
#[test]
fn huge_pages_have_events_too() {
    if !supported(Features::MISSING_HUGETLBFS | Features::MINOR_HUGETLBFS) {
        return;
    }
    let Some(reserved) = Reserved::new() else { return };
    const KIND: PagefaultFlags = PagefaultFlags::MINOR.union(PagefaultFlags::WP);
    let modes = [
        (RegisterMode::MISSING, PagefaultFlags::empty()),
        (RegisterMode::MINOR, PagefaultFlags::MINOR),
    ];
    for (mode, kind) in modes {
        let file = reserved.file().unwrap();
        let flags = MapFlags::MAP_SHARED;
        let (huge, alias) = (reserved.map(&file, flags), reserved.map(&file, flags));
        if mode == RegisterMode::MINOR {
            alias.write(0, 0);
        }
        let uffd = open(Features::EXACT_ADDRESS);
        huge.register(&uffd, mode);
        let address = huge.at(0) as usize + huge.size / 2 + 1;
        std::thread::scope(|scope| {
            // SAFETY: inside the mapping.
            let reader = scope.spawn(move || unsafe { (address as *const u8).read_volatile() });
            let mut queued =
                libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor, which is valid.
            assert_eq!(unsafe { libc::poll(&raw mut queued, 1, 10_000) }, 1, "no event");
            let event = uffd.read_event().unwrap();
            // SAFETY: the mapping is the test's own, and the reader finds zeroes.
            unsafe { uffd.unregister(huge.at(0), huge.len()) }.unwrap();
            // Unregistering wakes those who wait for a missing page only.
            uffd.wake(huge.at(0), huge.len()).unwrap();
            assert_eq!(reader.join().unwrap(), 0);
            match event {
                Some(Event::Pagefault { address: touched, flags, .. }) => {
                    assert_eq!((touched, flags & KIND), (address, kind), "{mode:?}");
                }
                other => panic!("expected a page fault, got {other:?}"),
            }
        });
    }
}

#[test]
fn huge_pages_can_be_write_protected() {
    if !supported(Features::WP_HUGETLBFS_SHMEM) {
        return;
    }
    let Some(reserved) = Reserved::new() else { return };
    for flags in [MapFlags::MAP_SHARED, MapFlags::MAP_PRIVATE] {
        let file = reserved.file().unwrap();
        let uffd = open(Features::SIGBUS | Features::WP_HUGETLBFS_SHMEM);
        let huge = reserved.map(&file, flags);
        let possible = huge.register(&uffd, RegisterMode::MISSING | RegisterMode::WP);
        assert!(possible.contains(Ioctls::WRITEPROTECT));
        let content = reserved.content(3);
        let mode = CopyMode::DONTWAKE | CopyMode::WP;
        let resolve = |fault| match copy(&uffd, &huge, huge.page_of(fault), &content, mode) {
            None => {}
            Some(errno) => {
                assert_eq!(errno, Errno::EEXIST);
                let at = huge.at(huge.page_of(fault));
                let mode = WriteProtectMode::DONTWAKE;
                // SAFETY: the mapping is the test's own.
                unsafe { uffd.write_protect(at, huge.size, mode) }.unwrap();
            }
        };
        let touch = || {
            for index in 0..PAGES {
                assert_eq!(huge.read(index), 3);
                huge.write(index, 4);
                assert_eq!(huge.read(index), 4);
            }
        };
        assert_eq!(resolving(resolve, touch), 2 * PAGES, "{flags:?}");
    }
}

#[test]
fn huge_pages_can_be_poisoned() {
    if !supported(Features::POISON) {
        return;
    }
    let Some(reserved) = Reserved::new() else { return };
    let file = reserved.file().unwrap();
    let (uffd, huge) = (open(Features::SIGBUS), reserved.map(&file, MapFlags::MAP_SHARED));
    huge.register(&uffd, RegisterMode::MISSING);
    // SAFETY: the mapping is the test's own.
    let poisoned = unsafe { uffd.poison(huge.at(0), huge.size, PoisonMode::DONTWAKE) };
    assert_eq!(poisoned.into_result(), Ok(huge.size));
    let content = reserved.content(2);
    let heal = |fault: Fault| {
        assert!([libc::BUS_MCEERR_AR, libc::BUS_ADRERR].contains(&fault.code), "{fault:?}");
        assert_eq!(copy(&uffd, &huge, 0, &content, CopyMode::DONTWAKE), None);
    };
    assert_eq!(resolving(heal, || assert_eq!(huge.read(0), 2)), 1);
}
