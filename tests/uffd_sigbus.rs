//! SIGBUS mode: how many signals a page costs, what resolves them, and what never signals. The
//! kernel's selftests `sigbus`, `sigbus-wp`, `zeropage`, `poison`, `minor` and `wp-unpopulated`
//! state the same in C.

mod uffd_support;

use lacuna::Errno;
use lacuna::uffd::{
    ContinueMode, CopyMode, Features, Ioctls, PoisonMode, RegisterMode, Uffd, WriteProtectMode,
    ZeropageMode,
};
use nix::sys::mman::MapFlags;
use std::cell::{Cell, RefCell};
use std::io::Read;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use uffd_support::process::alone;
use uffd_support::sigbus::{Fault, resolving};
use uffd_support::{Mapping, Memory, fill, memfd, missing, open, page, register, supported};

const PAGES: usize = 64;

/// What page `index` is filled with.
fn content(index: usize) -> u8 {
    index as u8 + 1
}

/// Resolves a missing page by `UFFDIO_COPY`, as a handler would: everything is at hand already.
struct Copier<'a> {
    uffd: Uffd<BorrowedFd<'a>>,
    start: usize,
    sources: &'a [Vec<u8>],
    mode: CopyMode,
}

impl Copier<'_> {
    fn page_of(&self, fault: Fault) -> usize {
        (fault.address - self.start) / page()
    }

    fn copy(&self, fault: Fault) -> Option<Errno> {
        let index = self.page_of(fault);
        let to = std::ptr::with_exposed_provenance_mut(self.start + index * page());
        // SAFETY: the address faulted, so it lies in the test's mapping; a source is one page.
        unsafe { self.uffd.copy(to, self.sources[index].as_ptr(), page(), self.mode) }.errno()
    }
}

fn sources() -> Vec<Vec<u8>> {
    (0..PAGES).map(|index| vec![content(index); page()]).collect()
}

#[test]
fn one_signal_a_page() {
    for memory in Memory::ALL {
        let (uffd, mapping) = (open(Features::SIGBUS), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING);
        let (uffd, start, sources) = (uffd.borrow(), mapping.start() as usize, sources());
        let copier = Copier { uffd, start, sources: &sources, mode: CopyMode::DONTWAKE };
        let faults = RefCell::new(Vec::with_capacity(PAGES + 1));
        let signals = resolving(
            |fault| {
                faults.borrow_mut().push(fault);
                assert_eq!(copier.copy(fault), None);
            },
            || {
                for index in 0..PAGES {
                    // The exact byte is reported, here the last of the page.
                    // SAFETY: inside the mapping.
                    let last = unsafe { mapping.at(index).add(page() - 1).read_volatile() };
                    assert_eq!(last, content(index));
                    mapping.write(index, last);
                }
            },
        );
        assert_eq!(signals, PAGES, "{memory:?}");
        for (index, fault) in faults.into_inner().into_iter().enumerate() {
            let address = mapping.at(index) as usize + page() - 1;
            assert_eq!(fault, Fault { address, code: libc::BUS_ADRERR }, "{memory:?}");
            assert_eq!(mapping.bytes(index), sources[index]);
        }
        assert!(uffd.read_event().unwrap().is_none(), "no event in SIGBUS mode");
    }
}

#[test]
fn two_signals_a_page_that_is_also_write_protected() {
    if !supported(Features::WP_HUGETLBFS_SHMEM | Features::PAGEFAULT_FLAG_WP) {
        return;
    }
    for memory in Memory::ALL {
        let features = Features::SIGBUS | Features::WP_HUGETLBFS_SHMEM;
        let (uffd, mapping) = (open(features), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING | RegisterMode::WP);
        let (start, sources) = (mapping.start() as usize, sources());
        let mode = CopyMode::DONTWAKE | CopyMode::WP;
        let copier = Copier { uffd: uffd.borrow(), start, sources: &sources, mode };
        let (missing, protected) = (Cell::new(0), Cell::new(0));
        let signals = resolving(
            |fault| match copier.copy(fault) {
                None => missing.set(missing.get() + 1),
                Some(errno) => {
                    assert_eq!(errno, Errno::EEXIST);
                    protected.set(protected.get() + 1);
                    let at = mapping.at(copier.page_of(fault));
                    // SAFETY: the mapping is the test's own.
                    unsafe { uffd.write_protect(at, page(), WriteProtectMode::DONTWAKE) }.unwrap();
                }
            },
            || {
                for index in 0..PAGES {
                    assert_eq!(mapping.read(index), content(index));
                    mapping.write(index, content(index) ^ 0xFF);
                    assert_eq!(mapping.read(index), content(index) ^ 0xFF);
                }
            },
        );
        assert_eq!((signals, missing.get(), protected.get()), (2 * PAGES, PAGES, PAGES));
    }
}

/// The page of zeros is copied on write by the kernel, without another signal.
#[test]
fn a_zero_page_signals_once() {
    for memory in Memory::ALL {
        let (uffd, mapping) = (open(Features::SIGBUS), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING);
        let signals = resolving(
            |fault| {
                let at = mapping.at((fault.address - mapping.start() as usize) / page());
                // SAFETY: the mapping is the test's own.
                let progress = unsafe { uffd.zeropage(at, page(), ZeropageMode::DONTWAKE) };
                assert!(progress.is_complete());
            },
            || {
                for index in 0..PAGES {
                    assert_eq!(mapping.bytes(index), vec![0; page()]);
                    mapping.write(index, 1);
                    assert_eq!(mapping.read(index), 1);
                }
            },
        );
        assert_eq!(signals, PAGES, "{memory:?}");
    }
}

/// Even pages are poisoned and signal; odd ones are copied and do not. Copying over poison heals.
#[test]
fn poison_signals_until_it_is_copied_over() {
    if !supported(Features::POISON) {
        return;
    }
    for memory in Memory::ALL {
        let (uffd, mapping) = (open(Features::SIGBUS), memory.map(PAGES));
        register(&uffd, &mapping, RegisterMode::MISSING);
        for index in 0..PAGES {
            if index % 2 == 1 {
                fill(&uffd, &mapping, index, content(index));
                continue;
            }
            // SAFETY: the mapping is the test's own.
            let progress = unsafe { uffd.poison(mapping.at(index), page(), PoisonMode::DONTWAKE) };
            assert_eq!(progress.into_result(), Ok(page()));
        }
        let (uffd, start, sources) = (uffd.borrow(), mapping.start() as usize, sources());
        let copier = Copier { uffd, start, sources: &sources, mode: CopyMode::DONTWAKE };
        let signals = resolving(
            |fault| {
                assert!([libc::BUS_MCEERR_AR, libc::BUS_ADRERR].contains(&fault.code));
                assert_eq!(copier.page_of(fault) % 2, 0);
                assert_eq!(copier.copy(fault), None, "{memory:?}");
            },
            || (0..PAGES).for_each(|index| assert_eq!(mapping.read(index), content(index))),
        );
        assert_eq!(signals, PAGES / 2, "{memory:?}");
    }
}

/// Pages that the file has and the mapping has not, changed by the handler before they are mapped.
#[test]
fn minor_faults_signal_once_a_page() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let file = memfd(PAGES);
    for index in 0..PAGES {
        file.write_all_at(&vec![content(index); page()], (index * page()) as u64).unwrap();
    }
    let mapping = Mapping::file(&file, PAGES, MapFlags::MAP_SHARED);
    let alias = Mapping::file(&file, PAGES, MapFlags::MAP_SHARED);
    let uffd = open(Features::SIGBUS);
    register(&uffd, &mapping, RegisterMode::MINOR);
    let signals = resolving(
        |fault| {
            let index = (fault.address - mapping.start() as usize) / page();
            alias.write(index, !alias.read(index));
            let mode = ContinueMode::DONTWAKE;
            // SAFETY: the mapping is the test's own.
            assert!(unsafe { uffd.r#continue(mapping.at(index), page(), mode) }.is_complete());
        },
        || (0..PAGES).for_each(|index| assert_eq!(mapping.read(index), !content(index))),
    );
    assert_eq!(signals, PAGES);
}

/// A private mapping of a file has minor faults too; what is written there stays there.
#[test]
fn minor_faults_of_private_mappings() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let file = memfd(1);
    file.write_all_at(&[5], 0).unwrap();
    let (uffd, mapping) = (open(Features::SIGBUS), Mapping::file(&file, 1, MapFlags::MAP_PRIVATE));
    register(&uffd, &mapping, RegisterMode::MINOR);
    let resolve = |_| {
        // SAFETY: the mapping is the test's own.
        let mapped = unsafe { uffd.r#continue(mapping.start(), page(), ContinueMode::empty()) };
        assert_eq!(mapped.into_result(), Ok(page()));
    };
    let touch = || {
        assert_eq!(mapping.read(0), 5);
        mapping.write(0, 6);
    };
    assert_eq!(resolving(resolve, touch), 1);
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0).unwrap();
    assert_eq!((mapping.read(0), byte), (6, [5]));
}

/// With WP_ASYNC the kernel lifts the protection by itself, also for its own writes, while missing
/// pages still signal.
#[test]
fn asynchronous_write_protection_never_signals() {
    if !supported(Features::WP_ASYNC) {
        return;
    }
    let (uffd, mapping) = (open(Features::SIGBUS | Features::WP_ASYNC), Mapping::anonymous(PAGES));
    register(&uffd, &mapping, RegisterMode::MISSING | RegisterMode::WP);
    (0..PAGES).for_each(|index| fill(&uffd, &mapping, index, content(index)));
    // SAFETY: the mapping is the test's own.
    unsafe { uffd.write_protect(mapping.start(), mapping.len(), WriteProtectMode::WP) }.unwrap();
    let write = || (0..PAGES).for_each(|index| mapping.write(index, 1));
    assert_eq!(resolving(|fault| panic!("{fault:?}"), write), 0);

    mapping.advise(0, 1, libc::MADV_DONTNEED);
    let resolve = |_| fill(&uffd, &mapping, 0, 9);
    assert_eq!(resolving(resolve, || assert_eq!(mapping.read(0), 9)), 1);
}

/// Protecting a missing page leaves a marker: touching it signals, ZEROPAGE calls it present, and
/// only COPY resolves it, keeping the protection if told to.
#[test]
fn protecting_missing_pages_leaves_markers() {
    if !supported(Features::WP_UNPOPULATED) {
        return;
    }
    let features = Features::SIGBUS | Features::WP_UNPOPULATED;
    let (uffd, mapping) = (open(features), Mapping::anonymous(2));
    register(&uffd, &mapping, RegisterMode::MISSING | RegisterMode::WP);
    let protect = |start, len, mode| {
        // SAFETY: the mapping is the test's own.
        unsafe { uffd.write_protect(start, len, mode) }.unwrap();
    };
    protect(mapping.start(), mapping.len(), WriteProtectMode::WP);
    let source = vec![5; page()];
    let modes = [CopyMode::empty(), CopyMode::WP];
    let missing = |fault: Fault| {
        let index = (fault.address - mapping.start() as usize) / page();
        let at = mapping.at(index);
        // SAFETY: the mapping is the test's own, and the source one page.
        unsafe {
            let zero = uffd.zeropage(at, page(), ZeropageMode::empty());
            assert_eq!((zero.bytes(), zero.errno()), (0, Some(Errno::EEXIST)));
            assert!(uffd.copy(at, source.as_ptr(), page(), modes[index]).is_complete());
        }
    };
    let signals = resolving(missing, || assert_eq!((mapping.read(0), mapping.read(1)), (5, 5)));
    assert_eq!(signals, 2);

    let lift = |fault: Fault| {
        assert_eq!(fault.address, mapping.at(1) as usize, "page 0 lost its protection");
        protect(mapping.at(1), page(), WriteProtectMode::empty());
    };
    let write = || (0..2).for_each(|index| mapping.write(index, 6));
    assert_eq!(resolving(lift, write), 1);
}

/// MADV_DONTNEED makes a page missing again, and unregistering makes missing pages zero.
#[test]
fn discarded_pages_signal_again_until_unregistered() {
    let (uffd, mapping) = missing(2);
    let value = Cell::new(1);
    let resolve = |fault: Fault| {
        let index = (fault.address - mapping.start() as usize) / page();
        fill(&uffd, &mapping, index, value.get());
    };
    let touch = || assert_eq!((mapping.read(0), mapping.read(1)), (value.get(), value.get()));
    assert_eq!(resolving(resolve, touch), 2);
    assert_eq!(resolving(resolve, touch), 0);
    mapping.advise(0, 2, libc::MADV_DONTNEED);
    value.set(2);
    assert_eq!(resolving(resolve, touch), 2);
    mapping.advise(0, 1, libc::MADV_DONTNEED);
    // SAFETY: the mapping is the test's own.
    unsafe { uffd.unregister(mapping.start(), mapping.len()) }.unwrap();
    let read = || assert_eq!((mapping.read(0), mapping.read(1)), (0, 2));
    assert_eq!(resolving(resolve, read), 0);
}

/// The kernel's own accesses are never resolved by the handler: the system call fails.
#[test]
fn system_calls_on_missing_pages_fail() {
    let (uffd, mapping) = missing(2);
    let read = || {
        // SAFETY: inside the mapping; the kernel writes there, nobody else.
        let buffer = unsafe { std::slice::from_raw_parts_mut(mapping.start(), mapping.len()) };
        std::fs::File::open("/dev/zero").unwrap().read(buffer)
    };
    let resolve = |fault| panic!("{fault:?}");
    let signals = resolving(resolve, || {
        assert_eq!(read().unwrap_err().raw_os_error(), Some(libc::EFAULT));
        fill(&uffd, &mapping, 0, 1);
        assert_eq!(read().unwrap(), page(), "as far as pages are present");
    });
    assert_eq!(signals, 0);
}

/// Any userfaultfd of the process may fill a registered range; only its own may MOVE into it.
#[test]
fn another_userfaultfd_can_fill_pages() {
    let (_uffd, mapping) = missing(1);
    fill(&open(Features::SIGBUS), &mapping, 0, 4);
    assert_eq!(mapping.read(0), 4);
}

/// Without a handler the signal kills, as any SIGBUS does.
#[test]
fn an_unresolved_fault_kills() {
    let ended = alone("an_unresolved_fault_kills", || {
        let (_uffd, mapping) = missing(1);
        std::process::exit(i32::from(mapping.read(0)));
    });
    let status = ended.unwrap().status;
    assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
}

/// What the kernel says can be done with a range, for every kind of memory and mode.
#[test]
fn registering_tells_which_operations_work() {
    let features = Uffd::probe().unwrap().features;
    let mut base = Ioctls::WAKE | Ioctls::COPY | Ioctls::ZEROPAGE;
    base.set(Ioctls::MOVE, features.contains(Features::MOVE));
    base.set(Ioctls::POISON, features.contains(Features::POISON));
    let named: Ioctls = Ioctls::all().iter_names().map(|(_, bit)| bit).collect();
    for memory in Memory::ALL {
        let mapping = memory.map(2);
        for bits in 1..8 {
            let mode = RegisterMode::from_bits_retain(bits);
            let (wp, minor) = (mode.contains(RegisterMode::WP), mode.contains(RegisterMode::MINOR));
            let file = memory != Memory::Anonymous;
            let possible = (!wp || !file || features.contains(Features::WP_HUGETLBFS_SHMEM))
                && (!minor || file && features.contains(Features::MINOR_SHMEM));
            let uffd = open(Features::empty());
            // SAFETY: the mapping is the test's own.
            let outcome = unsafe { uffd.register(mapping.start(), mapping.len(), mode) };
            if !possible {
                assert_eq!(outcome.unwrap_err().errno(), Some(Errno::EINVAL));
                continue;
            }
            let mut expected = base;
            expected.set(Ioctls::WRITEPROTECT, wp);
            expected.set(Ioctls::CONTINUE, minor);
            assert_eq!(outcome.unwrap() & named, expected, "{memory:?} {mode:?}");
            // Closing is not enough while another test spawns a process.
            // SAFETY: as above.
            unsafe { uffd.unregister(mapping.start(), mapping.len()) }.unwrap();
        }
    }
}
