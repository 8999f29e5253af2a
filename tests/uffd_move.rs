//! UFFDIO_MOVE: single pages, whole huge pages, holes, and pages that are not free to go. The
//! kernel's selftests `move`, `move-pmd` and `move-pmd-split` state the first three in C.

mod uffd_support;

use lacuna::Errno;
use lacuna::uffd::{CopyMode, Features, MoveMode, Progress, RegisterMode, Uffd};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::os::fd::{FromRawFd, OwnedFd};
use uffd_support::process::{fork, succeeds_alone};
use uffd_support::sigbus::resolving;
use uffd_support::{
    Mapping, RW, assert_nothing, bad_ranges, fill, loudly, memfd, missing, open, page, register,
    supported, unmapped,
};

const HUGE: usize = 2 << 20;

/// Moves `pages` pages from the start of one mapping to the start of another.
fn move_all(uffd: &Uffd, to: &Mapping, from: &Mapping, pages: usize, mode: MoveMode) -> Progress {
    // SAFETY: both mappings are the test's own.
    unsafe { uffd.move_pages(to.start(), from.start(), pages * page(), mode) }
}

#[test]
fn a_fault_is_resolved_by_moving_its_page() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(16);
    let source = Mapping::anonymous(16);
    (0..16).for_each(|index| source.write(index, index as u8 + 1));
    let resolve = |fault: uffd_support::sigbus::Fault| {
        let index = (fault.address - mapping.start() as usize) / page();
        let (to, from) = (mapping.at(index), source.at(index));
        // SAFETY: both mappings are the test's own.
        let progress = unsafe { uffd.move_pages(to, from, page(), MoveMode::DONTWAKE) };
        assert_eq!(progress.into_result(), Ok(page()));
    };
    let signals = resolving(resolve, || {
        (0..16).for_each(|index| assert_eq!(mapping.read(index), index as u8 + 1));
    });
    assert_eq!(signals, 16);
    // The source, which is not registered, is missing now and reads as zero.
    (0..16).for_each(|index| assert_eq!(source.read(index), 0));
}

#[test]
fn holes_stop_a_move_unless_they_are_allowed() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(4);
    let source = Mapping::anonymous(4);
    source.write(0, 1);
    source.write(2, 3);
    let stopped = move_all(&uffd, &mapping, &source, 4, MoveMode::empty());
    assert_eq!((stopped.bytes(), stopped.errno()), (page(), Some(Errno::EAGAIN)));
    let rest = |mode| {
        // SAFETY: both mappings are the test's own.
        unsafe { uffd.move_pages(mapping.at(1), source.at(1), 3 * page(), mode) }
    };
    assert_nothing(rest(MoveMode::empty()), Errno::ENOENT);
    let moved = rest(MoveMode::ALLOW_SRC_HOLES);
    assert_eq!(moved.into_result(), Ok(3 * page()), "holes count as moved");
    // Holes are still missing at the destination.
    let resolve = |fault: uffd_support::sigbus::Fault| {
        fill(&uffd, &mapping, (fault.address - mapping.start() as usize) / page(), 9);
    };
    let read = || {
        let values = [0, 1, 2, 3].map(|index| mapping.read(index));
        assert_eq!(values, [1, 9, 3, 9]);
    };
    assert_eq!(resolving(resolve, read), 2);
}

/// An aligned huge page goes whole; to an unaligned place it goes in pieces.
#[test]
fn huge_pages_move() {
    if !supported(Features::MOVE) {
        return;
    }
    for offset in [0, 1] {
        let (source, from) = huge_page();
        let uffd = open(Features::SIGBUS);
        let target = Mapping::anonymous(2 * HUGE / page() + 1);
        register(&uffd, &target, RegisterMode::MISSING);
        let to = aligned(&target).wrapping_add(offset * page());
        // SAFETY: both mappings are the test's own.
        let progress = unsafe { uffd.move_pages(to, from, HUGE, MoveMode::empty()) };
        assert_eq!(progress.into_result(), Ok(HUGE));
        let expected = if offset == 0 && thp() { HUGE } else { 0 };
        assert_eq!(huge_bytes(to), expected, "at offset {offset}");
        for index in 0..HUGE / page() {
            // SAFETY: the pages have just been moved there.
            assert_eq!(unsafe { to.add(index * page()).read() }, index as u8);
            // SAFETY: inside the source, which is ordinary memory and missing now.
            assert_eq!(unsafe { from.add(index * page()).read() }, 0);
        }
        drop(source);
    }
}

#[test]
fn pages_shared_with_a_child_are_busy() {
    // Alone: a fork makes the pages of every test busy.
    succeeds_alone("pages_shared_with_a_child_are_busy", shared_pages_are_busy);
}

fn shared_pages_are_busy() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(1);
    let source = Mapping::anonymous(1);
    source.write(0, 1);
    let child = fork(|| {
        loop {
            // SAFETY: waits for the signal that kills.
            unsafe { libc::pause() };
        }
    });
    let busy = move_all(&uffd, &mapping, &source, 1, MoveMode::empty());
    assert_eq!((busy.bytes(), busy.errno()), (0, Some(Errno::EBUSY)));
    drop(child);
    let still = move_all(&uffd, &mapping, &source, 1, MoveMode::empty());
    assert_eq!(still.errno(), Some(Errno::EBUSY), "shared until it is written");
    source.write(0, 2);
    assert!(move_all(&uffd, &mapping, &source, 1, MoveMode::empty()).is_complete());
    assert_eq!(mapping.read(0), 2);
}

/// A page that the kernel holds for I/O: a buffer registered with io_uring.
#[test]
fn pinned_pages_are_busy() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(1);
    let source = Mapping::anonymous(1);
    source.write(0, 1);
    let Some(ring) = pin(&source) else { return };
    let busy = move_all(&uffd, &mapping, &source, 1, MoveMode::empty());
    assert_eq!((busy.bytes(), busy.errno()), (0, Some(Errno::EBUSY)));
    unpin(&ring);
    assert!(move_all(&uffd, &mapping, &source, 1, MoveMode::empty()).is_complete());
    assert_eq!(mapping.read(0), 1);
}

/// The zero page moves like any other: the destination reads as zero without a fault.
#[test]
fn the_zero_page_moves() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(1);
    let source = Mapping::anonymous(1);
    assert_eq!(source.read(0), 0);
    assert!(move_all(&uffd, &mapping, &source, 1, MoveMode::empty()).is_complete());
    assert_eq!(resolving(|fault| panic!("{fault:?}"), || assert_eq!(mapping.read(0), 0)), 0);
}

#[test]
fn move_einval() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(2);
    let source = Mapping::anonymous(2);
    source.write(0, 1);
    let to_from = |to, from| {
        // SAFETY: the test's own mappings.
        unsafe { uffd.move_pages(to, from, page(), MoveMode::empty()) }
    };
    let refused = |to, from| assert_nothing(to_from(to, from), Errno::EINVAL);
    for (start, len) in bad_ranges(&mapping) {
        // SAFETY: as above.
        unsafe {
            let mode = MoveMode::empty();
            assert_nothing(uffd.move_pages(start, source.start(), len, mode), Errno::EINVAL);
            assert_nothing(uffd.move_pages(mapping.start(), start, len, mode), Errno::EINVAL);
            let mode = MoveMode::from_bits_retain(1 << 40);
            let (to, from) = (mapping.start(), source.start());
            assert_nothing(uffd.move_pages(to, from, page(), mode), Errno::EINVAL);
        }
    }
    let (_other, elsewhere) = missing(1);
    refused(elsewhere.start(), source.start()); // registered with another userfaultfd
    refused(Mapping::anonymous(1).start(), source.start()); // not registered
    let shared = Mapping::file(&memfd(1), 1, MapFlags::MAP_SHARED);
    shared.write(0, 1);
    refused(mapping.start(), shared.start());
    source.protect(0, 1, ProtFlags::PROT_READ);
    refused(mapping.start(), source.start());
    source.protect(0, 1, RW);
    // SAFETY: the test's own mapping.
    assert_eq!(unsafe { libc::mlock(source.start().cast(), page()) }, 0);
    refused(mapping.start(), source.start()); // locked, and the destination is not
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(source.start().cast(), page()) }, 0);
    assert!(to_from(mapping.start(), source.start()).is_complete());
}

#[test]
fn move_enoent() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(1);
    let source = Mapping::anonymous(1);
    source.write(0, 1);
    for (to, from) in [(mapping.start(), unmapped()), (unmapped(), source.start())] {
        // SAFETY: the kernel checks both ranges.
        let moved = unsafe { uffd.move_pages(to, from, page(), MoveMode::empty()) };
        assert_nothing(moved, Errno::ENOENT);
    }
}

/// A forked child that inherits the descriptor operates on its parent's memory; MOVE refuses that.
#[test]
fn move_works_in_the_own_process_only() {
    // Alone, as above.
    succeeds_alone("move_works_in_the_own_process_only", a_child_cannot_move);
}

fn a_child_cannot_move() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(1);
    let (source, bytes) = (Mapping::anonymous(1), vec![6; page()]);
    source.write(0, 1);
    let child = fork(|| {
        // SAFETY: the parent's memory is the test's own.
        let (moved, copied) = unsafe {
            let moved = uffd.move_pages(mapping.start(), source.start(), page(), MoveMode::empty());
            (moved, uffd.copy(mapping.start(), bytes.as_ptr(), page(), CopyMode::empty()))
        };
        i32::from(moved.errno() == Some(Errno::EINVAL)) + 2 * i32::from(copied.is_complete())
    });
    assert_eq!(child.exit_code(), 3);
    assert_eq!(mapping.bytes(0), bytes, "the child filled the parent's page");
}

fn aligned(mapping: &Mapping) -> *mut u8 {
    mapping.start().wrapping_add(mapping.start().align_offset(HUGE))
}

/// Whether the kernel makes huge pages where MADV_HUGEPAGE asks for them.
fn thp() -> bool {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    let available = enabled.is_ok_and(|enabled| !enabled.contains("[never]"));
    if !available {
        loudly("NOT TESTED, transparent huge pages are switched off: no huge page moves whole");
    }
    available
}

/// 2 MiB of one huge page, if the kernel has any, each page filled with its index.
fn huge_page() -> (Mapping, *mut u8) {
    let mapping = Mapping::anonymous(2 * HUGE / page());
    let start = aligned(&mapping);
    // SAFETY: inside the mapping.
    unsafe {
        libc::madvise(start.cast(), HUGE, libc::MADV_HUGEPAGE);
        for index in 0..HUGE / page() {
            start.add(index * page()).write_bytes(index as u8, page());
        }
    }
    assert_eq!(huge_bytes(start), if thp() { HUGE } else { 0 }, "no huge page to be had");
    (mapping, start)
}

/// AnonHugePages of the mapping that `address` lies in, in bytes.
fn huge_bytes(address: *mut u8) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        if let Some((start, end)) = range {
            let bound = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (bound(start), bound(end)) {
                inside = (start..end).contains(&(address as usize));
            }
        } else if let (true, Some(rest)) = (inside, line.strip_prefix("AnonHugePages:")) {
            return rest.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
        }
    }
    panic!("{address:p} is not mapped");
}

/// An io_uring that has the mapping registered as a buffer, which pins its pages.
fn pin(mapping: &Mapping) -> Option<OwnedFd> {
    // struct io_uring_params, all zero: the defaults.
    let mut params = [0_u64; 15];
    // SAFETY: the kernel fills in the params, whose size is 120 bytes.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
    let fd = match Errno::result(fd) {
        // SAFETY: a new descriptor.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd as i32) },
        Err(errno) => {
            assert!([Errno::EPERM, Errno::ENOSYS].contains(&errno), "io_uring_setup: {errno}");
            loudly("NOT TESTED, io_uring is denied here: MOVE of a pinned page");
            return None;
        }
    };
    let iovec = libc::iovec { iov_base: mapping.start().cast(), iov_len: mapping.len() };
    assert_eq!(io_uring_register(&fd, 0, &raw const iovec, 1), Ok(0));
    Some(fd)
}

fn unpin(ring: &OwnedFd) {
    assert_eq!(io_uring_register(ring, 1, std::ptr::null(), 0), Ok(0));
}

/// io_uring_register(2): 0 is IORING_REGISTER_BUFFERS, 1 is IORING_UNREGISTER_BUFFERS.
fn io_uring_register(
    ring: &OwnedFd,
    operation: i32,
    buffers: *const libc::iovec,
    count: u32,
) -> Result<libc::c_long, Errno> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(ring);
    // SAFETY: the buffers are as many as `count` says.
    let outcome =
        unsafe { libc::syscall(libc::SYS_io_uring_register, fd, operation, buffers, count) };
    Errno::result(outcome)
}
