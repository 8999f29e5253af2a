//! `lacuna::uffd` on hugetlbfs: missing, minor and write-protection faults of 2 MiB pages, private
//! and shared, and what of the rest the kernel offers there. Every operation counts in huge pages.
//!
//! The tests set pages aside where they may, and say so where they may not.

#[path = "support/pool.rs"]
mod pool;
mod uffd_support;

use lacuna::Errno;
use lacuna::uffd::{
    ContinueMode, CopyMode, Event, Features, Ioctls, PagefaultFlags, PoisonMode, RegisterMode,
    Uffd, WriteProtectMode, ZeropageMode,
};
use pool::{HUGE, Pool};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use uffd_support::sigbus::resolving;
use uffd_support::{assert_nothing, open, page, supported};

const PAGES: usize = 3;

/// The byte of a page that is touched: the exact address is to be told, not the page's first.
const TOUCHED: usize = 12345;

/// A mapping of huge pages, unmapped at the end.
struct Huge(*mut u8);

impl Huge {
    fn map(flags: libc::c_int, fd: libc::c_int) -> Self {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_NORESERVE);
        // SAFETY: a new mapping, placed by the kernel.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGES * HUGE, protection, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED, "{}", Errno::last());
        Self(start.cast())
    }

    /// Memory of no file.
    fn anonymous() -> Self {
        let huge = libc::MAP_HUGETLB | libc::MAP_HUGE_2MB;
        Self::map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge, -1)
    }

    fn shared(file: &File) -> Self {
        Self::map(libc::MAP_SHARED, file.as_raw_fd())
    }

    fn at(&self, index: usize) -> *mut u8 {
        assert!(index < PAGES);
        self.0.wrapping_add(index * HUGE)
    }

    fn read(&self, index: usize, offset: usize) -> u8 {
        // SAFETY: inside the mapping.
        unsafe { self.at(index).add(offset).read_volatile() }
    }

    fn write(&self, index: usize, offset: usize, value: u8) {
        // SAFETY: inside the mapping, which nobody else writes.
        unsafe { self.at(index).add(offset).write_volatile(value) }
    }

    fn register(&self, uffd: &Uffd, mode: RegisterMode) -> Ioctls {
        // SAFETY: the mapping is the test's own.
        unsafe { uffd.register(self.0, PAGES * HUGE, mode) }.unwrap()
    }

    fn page_of(&self, address: usize) -> usize {
        (address - self.0 as usize) / HUGE
    }

    /// Drops the pages: of a file, for everybody.
    fn empty(&self, advice: libc::c_int) {
        // SAFETY: the mapping is the test's own.
        let outcome = unsafe { libc::madvise(self.0.cast(), PAGES * HUGE, advice) };
        assert_eq!(outcome, 0, "{}", Errno::last());
    }
}

impl Drop for Huge {
    fn drop(&mut self) {
        // SAFETY: nobody has pointers into it any more.
        assert_eq!(unsafe { libc::munmap(self.0.cast(), PAGES * HUGE) }, 0);
    }
}

fn memfd() -> File {
    let flags = libc::MFD_CLOEXEC | libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"uffd-test".as_ptr(), flags)) };
    file.set_len((PAGES * HUGE) as u64).unwrap();
    file
}

/// Memory of no file, of a file but private, and shared, with the advice that drops its pages.
fn memories() -> [(Huge, libc::c_int); 3] {
    let private = Huge::map(libc::MAP_PRIVATE, memfd().as_raw_fd());
    [
        (Huge::anonymous(), libc::MADV_DONTNEED),
        (private, libc::MADV_DONTNEED),
        (Huge::shared(&memfd()), libc::MADV_REMOVE),
    ]
}

fn copy(uffd: &Uffd, memory: &Huge, index: usize, value: u8, mode: CopyMode) -> Option<Errno> {
    let source = vec![value; HUGE];
    // SAFETY: the mapping is the test's own, and the source one page long.
    unsafe { uffd.copy(memory.at(index), source.as_ptr(), HUGE, mode) }.errno()
}

#[test]
fn missing_huge_pages_signal_once_each() {
    if !supported(Features::MISSING_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::with(PAGES) else { return };
    for (memory, advice) in memories() {
        let uffd = open(Features::SIGBUS);
        let offered = memory.register(&uffd, RegisterMode::MISSING);
        assert!(offered.contains(Ioctls::WAKE | Ioctls::COPY));
        assert!(!offered.intersects(Ioctls::ZEROPAGE | Ioctls::MOVE | Ioctls::CONTINUE));
        for _ in 0..2 {
            let signals = resolving(
                |fault| {
                    let index = memory.page_of(fault.address);
                    assert_eq!((fault.address - memory.0 as usize) % HUGE, TOUCHED);
                    let done = copy(&uffd, &memory, index, index as u8 + 1, CopyMode::DONTWAKE);
                    assert_eq!(done, None);
                },
                || {
                    for index in 0..PAGES {
                        assert_eq!(memory.read(index, TOUCHED), index as u8 + 1);
                        memory.write(index, HUGE - 1, 9);
                        assert_eq!(memory.read(index, 0), index as u8 + 1);
                    }
                },
            );
            assert_eq!(signals, PAGES);
            memory.empty(advice);
        }
    }
}

#[test]
fn what_does_not_work() {
    if !supported(Features::MISSING_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::exactly(PAGES) else { return };
    for (memory, advice) in memories() {
        let uffd = open(Features::SIGBUS);
        memory.register(&uffd, RegisterMode::MISSING);
        let (start, small) = (memory.at(0), vec![0u8; HUGE]);
        // SAFETY: the mapping is the test's own, and the source long enough.
        unsafe {
            assert_nothing(uffd.zeropage(start, HUGE, ZeropageMode::empty()), Errno::EINVAL);
            let part = uffd.copy(start, small.as_ptr(), page(), CopyMode::empty());
            assert_nothing(part, Errno::EINVAL);
        }
        assert_eq!(copy(&uffd, &memory, 0, 1, CopyMode::empty()), None);
        assert_eq!(copy(&uffd, &memory, 0, 1, CopyMode::empty()), Some(Errno::EEXIST));
        // The pool is empty: ENOMEM, or EEXIST where the kernel has made a page table before it looked.
        let rest = Huge::anonymous();
        rest.register(&uffd, RegisterMode::MISSING);
        assert_eq!(copy(&uffd, &memory, 1, 1, CopyMode::empty()), None);
        assert_eq!(copy(&uffd, &memory, 2, 1, CopyMode::empty()), None);
        let none = copy(&uffd, &rest, 0, 1, CopyMode::empty());
        assert!(matches!(none, Some(Errno::ENOMEM | Errno::EEXIST)), "{none:?}");
        drop(rest);
        memory.empty(advice);
    }
}

/// The first touch of a page, and the first write to it.
#[test]
fn huge_pages_can_be_write_protected() {
    let features = Features::WP_HUGETLBFS_SHMEM | Features::PAGEFAULT_FLAG_WP;
    if !supported(features | Features::MISSING_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::with(PAGES) else { return };
    for (memory, advice) in memories() {
        let uffd = open(Features::SIGBUS | features);
        let offered = memory.register(&uffd, RegisterMode::MISSING | RegisterMode::WP);
        assert!(offered.contains(Ioctls::COPY | Ioctls::WRITEPROTECT));
        let mode = CopyMode::DONTWAKE | CopyMode::WP;
        let signals = resolving(
            |fault| {
                let index = memory.page_of(fault.address);
                if let Some(errno) = copy(&uffd, &memory, index, 5, mode) {
                    assert_eq!(errno, Errno::EEXIST);
                    let at = memory.at(index);
                    // SAFETY: the mapping is the test's own.
                    unsafe { uffd.write_protect(at, HUGE, WriteProtectMode::DONTWAKE) }.unwrap();
                }
            },
            || {
                for index in 0..PAGES {
                    assert_eq!(memory.read(index, 7), 5);
                    memory.write(index, 8, 6);
                    memory.write(index, HUGE - 1, 6);
                    assert_eq!((memory.read(index, 7), memory.read(index, 8)), (5, 6));
                }
            },
        );
        assert_eq!(signals, 2 * PAGES);
        memory.empty(advice);
    }
}

/// Pages that the file has and the mapping has not, changed by the handler before they are mapped.
#[test]
fn minor_faults_of_huge_pages_are_continued() {
    if !supported(Features::MINOR_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::with(PAGES) else { return };
    let file = memfd();
    let (memory, alias) = (Huge::shared(&file), Huge::shared(&file));
    (0..PAGES).for_each(|index| alias.write(index, 99, index as u8));
    let uffd = open(Features::SIGBUS | Features::MINOR_HUGETLBFS);
    let offered = memory.register(&uffd, RegisterMode::MINOR);
    assert!(offered.contains(Ioctls::CONTINUE));
    let signals = resolving(
        |fault| {
            let index = memory.page_of(fault.address);
            alias.write(index, 99, !alias.read(index, 99));
            let mode = ContinueMode::DONTWAKE;
            // SAFETY: the mapping is the test's own.
            let mapped = unsafe { uffd.r#continue(memory.at(index), HUGE, mode) };
            assert_eq!(mapped.into_result(), Ok(HUGE));
        },
        || (0..PAGES).for_each(|index| assert_eq!(memory.read(index, 99), !(index as u8))),
    );
    assert_eq!(signals, PAGES);
    memory.write(0, 99, 7);
    assert_eq!(alias.read(0, 99), 7, "it is the page that the file has");
    // SAFETY: as above.
    let again = unsafe { uffd.r#continue(memory.at(0), HUGE, ContinueMode::empty()) };
    assert_nothing(again, Errno::EEXIST);
}

/// Missing and minor faults of one mapping: which it is, the kernel's answers tell.
#[test]
fn missing_and_minor_faults_of_one_mapping() {
    if !supported(Features::MISSING_HUGETLBFS | Features::MINOR_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::with(PAGES) else { return };
    let file = memfd();
    let (memory, alias) = (Huge::shared(&file), Huge::shared(&file));
    alias.write(1, 0, 8);
    let uffd = open(Features::SIGBUS);
    memory.register(&uffd, RegisterMode::MISSING | RegisterMode::MINOR);
    let signals = resolving(
        |fault| {
            let index = memory.page_of(fault.address);
            // SAFETY: the mapping is the test's own.
            let mapped = unsafe { uffd.r#continue(memory.at(index), HUGE, ContinueMode::DONTWAKE) };
            if mapped.errno() == Some(Errno::EFAULT) {
                assert_eq!(copy(&uffd, &memory, index, 3, CopyMode::DONTWAKE), None);
            }
        },
        || assert_eq!([0, 1, 2].map(|index| memory.read(index, 0)), [3, 8, 3]),
    );
    assert_eq!(signals, PAGES);
}

/// The kind of the fault, where it is an event.
#[test]
fn huge_pages_have_events_too() {
    if !supported(Features::MISSING_HUGETLBFS | Features::MINOR_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::with(1) else { return };
    const KIND: PagefaultFlags = PagefaultFlags::MINOR.union(PagefaultFlags::WP);
    let modes = [
        (RegisterMode::MISSING, PagefaultFlags::empty()),
        (RegisterMode::MINOR, PagefaultFlags::MINOR),
    ];
    for (mode, kind) in modes {
        let file = memfd();
        let (memory, alias) = (Huge::shared(&file), Huge::shared(&file));
        if mode == RegisterMode::MINOR {
            alias.write(0, 0, 0);
        }
        let uffd = open(Features::EXACT_ADDRESS);
        memory.register(&uffd, mode);
        let address = memory.at(0) as usize + TOUCHED;
        std::thread::scope(|scope| {
            // SAFETY: inside the mapping.
            let reader = scope.spawn(move || unsafe { (address as *const u8).read_volatile() });
            let mut queued =
                libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one descriptor, which is valid.
            assert_eq!(unsafe { libc::poll(&raw mut queued, 1, 10_000) }, 1, "no event");
            let event = uffd.read_event().unwrap();
            // SAFETY: the mapping is the test's own, and the reader finds zeroes.
            unsafe { uffd.unregister(memory.at(0), PAGES * HUGE) }.unwrap();
            // Unregistering wakes those who wait for a missing page only.
            uffd.wake(memory.at(0), PAGES * HUGE).unwrap();
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

/// They signal until they are filled.
#[test]
fn huge_pages_can_be_poisoned() {
    if !supported(Features::POISON | Features::MISSING_HUGETLBFS) {
        return;
    }
    let Some(_pool) = Pool::with(1) else { return };
    for (memory, advice) in memories() {
        let uffd = open(Features::SIGBUS);
        memory.register(&uffd, RegisterMode::MISSING);
        // SAFETY: the mapping is the test's own.
        let poisoned = unsafe { uffd.poison(memory.at(0), HUGE, PoisonMode::DONTWAKE) };
        assert_eq!(poisoned.into_result(), Ok(HUGE));
        let signals = resolving(
            |fault| {
                assert!([libc::BUS_MCEERR_AR, libc::BUS_ADRERR].contains(&fault.code), "{fault:?}");
                assert_eq!(copy(&uffd, &memory, 0, 4, CopyMode::DONTWAKE), None);
            },
            || assert_eq!(memory.read(0, 5), 4),
        );
        assert_eq!(signals, 1);
        memory.empty(advice);
    }
}
