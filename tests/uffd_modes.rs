//! Mode flags that no other file exercises: each operation's DONTWAKE, CONTINUE that protects, and what
//! the kernel tells of pages that were written under WP_ASYNC.

mod uffd_support;

use lacuna::uffd::{
    ContinueMode, Event, Features, MoveMode, PagefaultFlags, PoisonMode, RegisterMode, Uffd,
    WriteProtectMode,
};
use linux_raw_sys::general::{
    PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, page_region, pm_scan_arg,
};
use nix::sys::mman::MapFlags;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;
use uffd_support::sigbus::resolving;
use uffd_support::{Mapping, fill, memfd, open, page, register, supported};

/// Waits for a fault, and tells its kind.
fn fault(uffd: &Uffd) -> PagefaultFlags {
    let mut queued = libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one descriptor, which is valid.
    assert_eq!(unsafe { libc::poll(&raw mut queued, 1, 10_000) }, 1, "no event");
    match uffd.read_event().unwrap() {
        Some(Event::Pagefault { flags, .. }) => flags,
        other => panic!("expected a page fault, got {other:?}"),
    }
}

/// A thread that waits for a page goes on when it is told to, and not when `install` is done.
fn wakes_nobody(uffd: &Uffd, mapping: &Mapping, install: impl FnOnce()) -> u8 {
    thread::scope(|scope| {
        let reader = scope.spawn(|| mapping.read(0));
        fault(uffd);
        install();
        thread::sleep(Duration::from_millis(100));
        assert!(!reader.is_finished(), "woken in spite of DONTWAKE");
        uffd.wake(mapping.start(), page()).unwrap();
        reader.join().unwrap()
    })
}

/// Shared memory whose page cache has `pages` pages that the mapping has not, and the file.
fn cached(pages: usize, value: u8) -> (Mapping, File) {
    let file = memfd(pages);
    file.write_all_at(&vec![value; pages * page()], 0).unwrap();
    (Mapping::file(&file, pages, MapFlags::MAP_SHARED), file)
}

#[test]
fn continue_wakes_nobody_if_told_so() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let (uffd, (mapping, _file)) = (open(Features::empty()), cached(1, 7));
    register(&uffd, &mapping, RegisterMode::MINOR);
    let read = wakes_nobody(&uffd, &mapping, || {
        // SAFETY: the mapping is the test's own.
        let mapped = unsafe { uffd.r#continue(mapping.start(), page(), ContinueMode::DONTWAKE) };
        assert_eq!(mapped.into_result(), Ok(page()));
    });
    assert_eq!(read, 7);
}

/// Only those who wait in a range that is registered for missing pages are woken.
#[test]
fn unregistering_leaves_waiters_of_minor_faults_asleep() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let (uffd, (mapping, _file)) = (open(Features::empty()), cached(1, 8));
    register(&uffd, &mapping, RegisterMode::MINOR);
    let read = wakes_nobody(&uffd, &mapping, || {
        // SAFETY: the mapping is the test's own.
        unsafe { uffd.unregister(mapping.start(), mapping.len()) }.unwrap();
    });
    assert_eq!(read, 8);
}

#[test]
fn move_wakes_nobody_if_told_so() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping, source) =
        (open(Features::empty()), Mapping::anonymous(1), Mapping::anonymous(1));
    register(&uffd, &mapping, RegisterMode::MISSING);
    source.write(0, 6);
    let read = wakes_nobody(&uffd, &mapping, || {
        let (to, from) = (mapping.start(), source.start());
        // SAFETY: both mappings are the test's own.
        let moved = unsafe { uffd.move_pages(to, from, page(), MoveMode::DONTWAKE) };
        assert_eq!(moved.into_result(), Ok(page()));
    });
    assert_eq!((read, source.read(0)), (6, 0));
}

/// The thread that wakes finds the page poisoned: that is a SIGBUS, whatever the userfaultfd.
#[test]
fn poison_wakes_nobody_if_told_so() {
    if !supported(Features::POISON) {
        return;
    }
    let (uffd, mapping) = (open(Features::empty()), Mapping::anonymous(1));
    register(&uffd, &mapping, RegisterMode::MISSING);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            resolving(|_| fill(&uffd, &mapping, 0, 5), || assert_eq!(mapping.read(0), 5))
        });
        assert_eq!(fault(&uffd), PagefaultFlags::empty());
        // SAFETY: the mapping is the test's own.
        let poisoned = unsafe { uffd.poison(mapping.start(), page(), PoisonMode::DONTWAKE) };
        assert_eq!(poisoned.into_result(), Ok(page()));
        thread::sleep(Duration::from_millis(100));
        assert!(!reader.is_finished(), "woken in spite of DONTWAKE");
        uffd.wake(mapping.start(), page()).unwrap();
        assert_eq!(reader.join().unwrap(), 1, "signals");
    });
}

/// A page that CONTINUE maps write-protected can be read, and signals when it is written.
#[test]
fn continue_can_protect() {
    if !supported(Features::MINOR_SHMEM | Features::WP_HUGETLBFS_SHMEM | Features::WP_UNPOPULATED) {
        return;
    }
    // WP_UNPOPULATED came with the kernel that has CONTINUE_MODE_WP, which has no feature of its own.
    let (mapping, file) = cached(2, 3);
    let uffd = open(Features::SIGBUS | Features::WP_HUGETLBFS_SHMEM);
    register(&uffd, &mapping, RegisterMode::MINOR | RegisterMode::WP);
    let modes = [ContinueMode::WP | ContinueMode::DONTWAKE, ContinueMode::DONTWAKE];
    for (index, mode) in modes.into_iter().enumerate() {
        let map = |_| {
            // SAFETY: the mapping is the test's own.
            let mapped = unsafe { uffd.r#continue(mapping.at(index), page(), mode) };
            assert_eq!(mapped.into_result(), Ok(page()));
        };
        assert_eq!(resolving(map, || assert_eq!(mapping.read(index), 3)), 1);
    }
    let lift = |_| {
        // SAFETY: as above.
        unsafe { uffd.write_protect(mapping.start(), page(), WriteProtectMode::DONTWAKE) }.unwrap();
    };
    let write = |index| mapping.write(index, 4);
    assert_eq!(resolving(lift, || write(0)), 1, "the first page is protected");
    assert_eq!(resolving(|fault| panic!("{fault:?}"), || write(1)), 0);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, [4]);
}

/// Runs of pages that were written since they were protected last, which this does again.
fn written(mapping: &Mapping) -> Vec<Range<usize>> {
    let mut regions = [page_region { start: 0, end: 0, categories: 0 }; 8];
    let start = mapping.start() as u64;
    let mut argument = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: u64::from(PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC),
        start,
        end: start + mapping.len() as u64,
        walk_end: 0,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        max_pages: 0,
        category_inverted: 0,
        category_mask: u64::from(PAGE_IS_WRITTEN),
        category_anyof_mask: 0,
        return_mask: u64::from(PAGE_IS_WRITTEN),
    };
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let request = nix::request_code_readwrite!(b'f', 16, size_of::<pm_scan_arg>());
    // SAFETY: PAGEMAP_SCAN, with its argument and room for what it tells.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), request, &raw mut argument) };
    assert!(count >= 0, "PAGEMAP_SCAN: {}", std::io::Error::last_os_error());
    let index = |address: u64| (address - start) as usize / page();
    regions[..count as usize].iter().map(|it| index(it.start)..index(it.end)).collect()
}

/// The kernel lifts the protection of what is written, without a signal, and PAGEMAP_SCAN tells which
/// pages those are and protects them again; what is missing counts as not written only if it was
/// protected, which WP_ASYNC does to missing pages too.
#[test]
fn the_kernel_tells_which_pages_were_written() {
    if !supported(Features::WP_ASYNC) {
        return;
    }
    let (uffd, mapping) = (open(Features::SIGBUS | Features::WP_ASYNC), Mapping::anonymous(16));
    register(&uffd, &mapping, RegisterMode::WP);
    (0..8).for_each(|index| mapping.write(index, 1));
    // SAFETY: the mapping is the test's own.
    unsafe { uffd.write_protect(mapping.start(), mapping.len(), WriteProtectMode::WP) }.unwrap();
    assert_eq!(written(&mapping), []);
    let touch = |pages: &[usize]| {
        let body = || pages.iter().for_each(|index| mapping.write(*index, 2));
        assert_eq!(resolving(|fault| panic!("{fault:?}"), body), 0);
    };
    touch(&[1, 4, 5, 12]);
    (0..16).for_each(|index| _ = mapping.read(index));
    assert_eq!(written(&mapping), [1..2, 4..6, 12..13]);
    assert_eq!(written(&mapping), [], "they are protected again");
    touch(&[5]);
    assert_eq!(written(&mapping), std::slice::from_ref(&(5..6)));
}
