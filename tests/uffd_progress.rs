//! Operations that stop halfway, and what they leave behind: `Progress` never loses a page.

mod uffd_support;

use lacuna::uffd::{
    ContinueMode, CopyMode, Features, MoveMode, PoisonMode, Progress, RegisterMode, ZeropageMode,
};
use lacuna::{Errno, ErrorKind, Operation};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::os::unix::fs::FileExt;
use uffd_support::{Mapping, Memory, RW, fill, memfd, missing, open, page, register, supported};

const PAGES: usize = 8;
/// The page that is present already.
const PRESENT: usize = 3;

/// Runs an operation over `PAGES` pages of which `PRESENT` is there: it stops there with EAGAIN,
/// starting there is EEXIST, and after it the rest is done.
fn stops_at_the_present_page(
    operation: Operation,
    start: *mut u8,
    run: impl Fn(usize, usize) -> Progress,
) {
    let bytes = |pages| pages * page();
    let first = run(0, PAGES);
    assert_eq!((first.bytes(), first.errno()), (bytes(PRESENT), Some(Errno::EAGAIN)));
    assert!(!first.is_complete());
    let error = first.into_result().unwrap_err();
    assert_eq!((error.operation(), error.kind()), (operation, ErrorKind::Os));
    assert_eq!(error.errno(), Some(Errno::EAGAIN));
    let rest = start as usize + bytes(PRESENT)..start as usize + bytes(PAGES);
    let shown = format!("({:#x}..{:#x})", rest.start, rest.end);
    assert!(error.to_string().contains(&shown), "{error} lacks {shown}");

    let at_present = run(PRESENT, PAGES - PRESENT);
    assert_eq!((at_present.bytes(), at_present.errno()), (0, Some(Errno::EEXIST)));

    let after = run(PRESENT + 1, PAGES - PRESENT - 1);
    assert_eq!((after.bytes(), after.errno()), (bytes(PAGES - PRESENT - 1), None));
    assert_eq!(after.into_result(), Ok(bytes(PAGES - PRESENT - 1)));
}

/// What page `index` reads as when all but `PRESENT`, which is 99, were filled by `value`.
fn check(mapping: &Mapping, value: impl Fn(usize) -> u8) {
    for index in 0..PAGES {
        let expected = if index == PRESENT { 99 } else { value(index) };
        assert_eq!(mapping.bytes(index), vec![expected; page()], "page {index}");
    }
}

#[test]
fn copy_stops_at_a_present_page() {
    for memory in Memory::ALL {
        let (uffd, mapping) = (open(Features::SIGBUS), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING);
        fill(&uffd, &mapping, PRESENT, 99);
        let source: Vec<u8> = (0..PAGES * page()).map(|byte| (byte / page()) as u8 + 1).collect();
        stops_at_the_present_page(Operation::Copy, mapping.start(), |first, pages| {
            let (to, from) = (mapping.at(first), source[first * page()..].as_ptr());
            // SAFETY: the mapping is the test's own, and the source as long.
            unsafe { uffd.copy(to, from, pages * page(), CopyMode::DONTWAKE) }
        });
        check(&mapping, |index| index as u8 + 1);
    }
}

#[test]
fn zeropage_stops_at_a_present_page() {
    for memory in Memory::ALL {
        let (uffd, mapping) = (open(Features::SIGBUS), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING);
        fill(&uffd, &mapping, PRESENT, 99);
        stops_at_the_present_page(Operation::Zeropage, mapping.start(), |first, pages| {
            // SAFETY: the mapping is the test's own.
            unsafe { uffd.zeropage(mapping.at(first), pages * page(), ZeropageMode::DONTWAKE) }
        });
        check(&mapping, |_| 0);
    }
}

#[test]
fn poison_stops_at_a_present_page() {
    if !supported(Features::POISON) {
        return;
    }
    for memory in Memory::ALL {
        let (uffd, mapping) = (open(Features::SIGBUS), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING);
        fill(&uffd, &mapping, PRESENT, 99);
        stops_at_the_present_page(Operation::Poison, mapping.start(), |first, pages| {
            // SAFETY: the mapping is the test's own.
            unsafe { uffd.poison(mapping.at(first), pages * page(), PoisonMode::DONTWAKE) }
        });
        // Poison counts as present for ZEROPAGE on private memory, never for COPY.
        // SAFETY: as above.
        let zero = unsafe { uffd.zeropage(mapping.start(), page(), ZeropageMode::DONTWAKE) };
        if memory == Memory::Shared {
            assert_eq!(zero.into_result(), Ok(page()));
            mapping.advise(0, 1, libc::MADV_REMOVE);
        } else {
            assert_eq!((zero.bytes(), zero.errno()), (0, Some(Errno::EEXIST)));
        }
        (0..PAGES).filter(|index| *index != PRESENT).for_each(|index| {
            fill(&uffd, &mapping, index, 1);
        });
        check(&mapping, |_| 1);
    }
}

#[test]
fn continue_stops_at_a_mapped_page() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let file = memfd(PAGES);
    for index in 0..PAGES {
        let value = if index == PRESENT { 99 } else { index as u8 };
        file.write_all_at(&vec![value; page()], (index * page()) as u64).unwrap();
    }
    let mapping = Mapping::file(&file, PAGES, MapFlags::MAP_SHARED);
    let uffd = open(Features::SIGBUS);
    register(&uffd, &mapping, RegisterMode::MINOR);
    let run = |first, pages| {
        // SAFETY: the mapping is the test's own.
        unsafe { uffd.r#continue(mapping.at(first), pages * page(), ContinueMode::DONTWAKE) }
    };
    assert!(run(PRESENT, 1).is_complete());
    stops_at_the_present_page(Operation::Continue, mapping.start(), run);
    check(&mapping, |index| index as u8);
}

#[test]
fn move_stops_at_a_present_page() {
    if !supported(Features::MOVE) {
        return;
    }
    let (uffd, mapping) = missing(PAGES);
    fill(&uffd, &mapping, PRESENT, 99);
    let source = Mapping::anonymous(PAGES);
    (0..PAGES).for_each(|index| {
        // SAFETY: inside the mapping.
        unsafe { source.at(index).write_bytes(index as u8, page()) };
    });
    stops_at_the_present_page(Operation::Move, mapping.start(), |first, pages| {
        let (to, from) = (mapping.at(first), source.at(first));
        // SAFETY: both mappings are the test's own.
        unsafe { uffd.move_pages(to, from, pages * page(), MoveMode::DONTWAKE) }
    });
    check(&mapping, |index| index as u8);
    assert_eq!(source.read(PRESENT), PRESENT as u8, "what was not moved stays");
}

/// The source of a copy may end in memory that cannot be read: the pages before it are copied.
#[test]
fn copy_stops_where_its_source_ends() {
    let (uffd, mapping) = missing(PAGES);
    let source = Mapping::anonymous(PAGES);
    source.write(0, 1);
    source.protect(2, 6, ProtFlags::PROT_NONE);
    let copy = |first: usize| {
        let (to, from, len) = (mapping.at(first), source.at(first), (PAGES - first) * page());
        // SAFETY: the kernel checks that it can read the source.
        unsafe { uffd.copy(to, from, len, CopyMode::empty()) }
    };
    let (first, second) = (copy(0), copy(2));
    assert_eq!((first.bytes(), first.errno()), (2 * page(), Some(Errno::EAGAIN)));
    assert_eq!((second.bytes(), second.errno()), (0, Some(Errno::EFAULT)));
}

#[test]
fn copy_takes_an_unaligned_source() {
    let (uffd, mapping) = missing(2);
    let source: Vec<u8> = (0..2 * page() + 1).map(|byte| (byte % 251) as u8).collect();
    // SAFETY: the mapping is the test's own, and the source long enough.
    let progress =
        unsafe { uffd.copy(mapping.start(), source[1..].as_ptr(), 2 * page(), CopyMode::empty()) };
    assert_eq!(progress.into_result(), Ok(2 * page()));
    assert_eq!([mapping.bytes(0), mapping.bytes(1)].concat(), source[1..]);
}

/// Pages are installed whatever the protection; access is judged afterwards.
#[test]
fn pages_can_be_installed_behind_any_protection() {
    for protection in [ProtFlags::PROT_NONE, ProtFlags::PROT_READ] {
        let mapping = Mapping::with_protection(2, protection);
        let uffd = open(Features::SIGBUS);
        register(&uffd, &mapping, RegisterMode::MISSING);
        fill(&uffd, &mapping, 0, 8);
        // SAFETY: the mapping is the test's own.
        unsafe { uffd.zeropage(mapping.at(1), page(), ZeropageMode::empty()) }
            .into_result()
            .unwrap();
        mapping.protect(0, 2, RW);
        assert_eq!((mapping.read(0), mapping.read(1)), (8, 0));
    }
}

/// A refused request leaves the output field alone, and no stale value is taken for progress.
#[test]
fn refused_requests_have_no_progress() {
    let (uffd, mapping) = missing(2);
    let source = vec![1; 2 * page()];
    // SAFETY: nothing is done, because an unaligned length is refused.
    let progress =
        unsafe { uffd.copy(mapping.start(), source.as_ptr(), page() + 1, CopyMode::empty()) };
    assert_eq!((progress.bytes(), progress.errno()), (0, Some(Errno::EINVAL)));
    // SAFETY: as above, for an address range that wraps around.
    let progress =
        unsafe { uffd.zeropage(mapping.at(1), usize::MAX & !(page() - 1), ZeropageMode::empty()) };
    assert_eq!((progress.bytes(), progress.errno()), (0, Some(Errno::EINVAL)));
    assert!(progress.into_result().unwrap_err().to_string().contains("EINVAL"));
}
