//! Every errno of ioctl_userfaultfd(2) that an ordinary process can provoke, operation by operation.
//!
//! | operation | errno | test |
//! |---|---|---|
//! | UFFDIO_API | EINVAL, EFAULT | `uffd_open.rs` |
//! | UFFDIO_API | EPERM | `uffd_events.rs`, `fork_is_an_event_for_the_privileged` |
//! | UFFDIO_REGISTER | EINVAL | `register_einval` |
//! | UFFDIO_REGISTER | EBUSY | `register_ebusy` |
//! | UFFDIO_REGISTER | EPERM | `register_eperm` |
//! | UFFDIO_REGISTER, UFFDIO_UNREGISTER | ENOMEM | `the_owner_is_gone` |
//! | UFFDIO_UNREGISTER | EINVAL | `unregister_einval` |
//! | UFFDIO_COPY, ZEROPAGE, POISON, CONTINUE | EINVAL | `install_einval` |
//! | UFFDIO_COPY, ZEROPAGE, POISON, CONTINUE | ENOENT | `install_enoent` |
//! | UFFDIO_COPY, ZEROPAGE, POISON, CONTINUE, MOVE | EEXIST, EAGAIN (partial) | `uffd_progress.rs` |
//! | all that change pages | EAGAIN (map changing) | `uffd_events.rs`, `nothing_is_installed_*` |
//! | all that change pages, except MOVE | ESRCH | `the_owner_is_gone` |
//! | UFFDIO_COPY | EFAULT | `copy_efault` |
//! | UFFDIO_CONTINUE | EINVAL, EFAULT | `continue_einval`, `continue_efault` |
//! | UFFDIO_WRITEPROTECT | EINVAL, ENOENT | `write_protect_einval`, `write_protect_enoent` |
//! | UFFDIO_WAKE | EINVAL | `wake_einval` |
//! | UFFDIO_MOVE | EINVAL, ENOENT, EBUSY | `uffd_move.rs` |
//! | read(2) | EINTR | `read_eintr` |
//! | read(2) | EINVAL, EAGAIN | `uffd_open.rs`, `uffd_events.rs` |
//!
//! Not provoked: EFAULT of an argument, which a typed call cannot get wrong (but see
//! `uffd_open.rs`); ENOMEM of COPY, ZEROPAGE, CONTINUE, POISON and MOVE, which needs a machine or a
//! control group without memory; ESRCH of MOVE, where the kernel looks at the calling process
//! first; EFAULT of WRITEPROTECT, "a generic fault during processing"; ENOSPC of COPY, which Linux
//! 4.13 abolished; EMFILE of read(2), which takes a fork event, hence privilege. What hugetlbfs
//! refuses is in `uffd_hugetlb.rs`.

mod uffd_support;

use lacuna::uffd::{
    ContinueMode, CopyMode, Features, MoveMode, PoisonMode, RegisterMode, Uffd, WriteProtectMode,
    ZeropageMode,
};
use lacuna::{Errno, Error, Operation};
use nix::sys::mman::{MapFlags, ProtFlags};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::thread::JoinHandleExt;
use uffd_support::process::{orphan, succeeds_alone};
use uffd_support::{
    Mapping, assert_nothing, bad_ranges, fill, memfd, missing, open, page, register, supported,
    unmapped,
};

const MISSING: RegisterMode = RegisterMode::MISSING;

fn assert_error<T>(outcome: Result<T, Error>, operation: Operation, errno: Errno) {
    let error = outcome.map(drop).unwrap_err();
    assert_eq!((error.operation(), error.errno()), (operation, Some(errno)));
}

/// COPY, ZEROPAGE, POISON and CONTINUE of one range all fail with `errno`.
fn assert_installs_nothing(uffd: &Uffd, start: *mut u8, len: usize, errno: Errno) {
    let source = vec![1; 4 * page()];
    // SAFETY: the ranges of these tests are their own; no length is more than the source's.
    let outcomes = unsafe {
        [
            uffd.copy(start, source.as_ptr(), len, CopyMode::empty()),
            uffd.zeropage(start, len, ZeropageMode::empty()),
            uffd.poison(start, len, PoisonMode::empty()),
            uffd.r#continue(start, len, ContinueMode::empty()),
        ]
    };
    outcomes.into_iter().for_each(|progress| assert_nothing(progress, errno));
}

#[test]
fn register_einval() {
    let (uffd, mapping) = (open(Features::SIGBUS), Mapping::anonymous(2));
    let register = |start, len, mode| {
        // SAFETY: the test's own mapping.
        assert_error(
            unsafe { uffd.register(start, len, mode) },
            Operation::Register,
            Errno::EINVAL,
        );
    };
    for (start, len) in bad_ranges(&mapping) {
        register(start, len, MISSING);
    }
    register(mapping.start(), page(), RegisterMode::empty());
    register(mapping.start(), page(), RegisterMode::from_bits_retain(1 << 40));
    register(mapping.start(), page(), RegisterMode::MINOR); // on anonymous memory
    let file = File::open(std::env::current_exe().unwrap()).unwrap();
    let flags = MapFlags::MAP_PRIVATE;
    let ordinary = Mapping::file_with_protection(&file, 1, flags, ProtFlags::PROT_READ);
    register(ordinary.start(), page(), MISSING);
    register(unmapped(), page(), MISSING);
}

#[test]
fn register_ebusy() {
    let (owner, mapping) = missing(2);
    let other = open(Features::SIGBUS);
    // SAFETY: the test's own mapping.
    unsafe {
        let outcome = other.register(mapping.at(1), page(), MISSING);
        assert_error(outcome, Operation::Register, Errno::EBUSY);
        owner.unregister(mapping.at(1), page()).unwrap();
        assert!(other.register(mapping.at(1), page(), MISSING).is_ok());
        // The owner may register again, in another mode too.
        assert!(owner.register(mapping.start(), page(), RegisterMode::WP).is_ok());
    }
}

#[test]
fn register_eperm() {
    let file = memfd(1);
    let read_only = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let flags = MapFlags::MAP_SHARED;
    let mapping = Mapping::file_with_protection(&read_only, 1, flags, ProtFlags::PROT_READ);
    let uffd = open(Features::SIGBUS);
    // SAFETY: the test's own mapping.
    let outcome = unsafe { uffd.register(mapping.start(), page(), MISSING) };
    assert_error(outcome, Operation::Register, Errno::EPERM);
}

#[test]
fn unregister_einval() {
    let (uffd, mapping) = missing(2);
    let unregister = |uffd: &Uffd, start, len| {
        // SAFETY: the test's own mappings.
        unsafe { uffd.unregister(start, len) }
    };
    for (start, len) in bad_ranges(&mapping).into_iter().chain([(unmapped(), page())]) {
        assert_error(unregister(&uffd, start, len), Operation::Unregister, Errno::EINVAL);
    }
    match unregister(&open(Features::SIGBUS), mapping.start(), page()) {
        Err(error) => {
            assert_eq!(error.errno(), Some(Errno::EINVAL));
            fill(&uffd, &mapping, 0, 1); // which takes a registered page
        }
        // Older kernels let any userfaultfd do it.
        Ok(()) => assert_installs_nothing(&uffd, mapping.start(), page(), Errno::ENOENT),
    }
    let unregistered = Mapping::anonymous(1);
    assert_eq!(unregister(&uffd, unregistered.start(), page()), Ok(()));
}

/// Holes between mappings are passed over, as long as there is a mapping in the range.
#[test]
fn register_passes_over_holes() {
    // Alone: another thread might map something into the holes.
    succeeds_alone("register_passes_over_holes", passes_over_holes);
}

fn passes_over_holes() {
    let (uffd, mapping) = (open(Features::SIGBUS), Mapping::anonymous(3));
    // SAFETY: the test's own mapping; what is unmapped here is not used.
    unsafe {
        for hole in [0, 2] {
            assert_eq!(libc::munmap(mapping.at(hole).cast(), page()), 0);
        }
        assert!(uffd.register(mapping.start(), mapping.len(), MISSING).is_ok());
        fill(&uffd, &mapping, 1, 1);
        assert_eq!(uffd.unregister(mapping.start(), mapping.len()), Ok(()));
    }
}

#[test]
fn install_einval() {
    if !supported(Features::POISON) {
        return;
    }
    let (uffd, mapping) = missing(2);
    for (start, len) in bad_ranges(&mapping) {
        assert_installs_nothing(&uffd, start, len, Errno::EINVAL);
    }
    let (start, source, bit) = (mapping.start(), vec![1; page()], 1 << 40);
    // SAFETY: the test's own mapping, and the kernel checks the source that wraps around.
    unsafe {
        let copy = |mode| uffd.copy(start, source.as_ptr(), page(), mode);
        assert_nothing(copy(CopyMode::from_bits_retain(bit)), Errno::EINVAL);
        assert_nothing(copy(CopyMode::WP), Errno::EINVAL); // not registered for WP
        let last = usize::MAX as *const u8;
        let wraps = uffd.copy(start, last, page(), CopyMode::empty());
        assert_nothing(wraps, Errno::EINVAL);
        let mode = ZeropageMode::from_bits_retain(bit);
        assert_nothing(uffd.zeropage(start, page(), mode), Errno::EINVAL);
        let mode = PoisonMode::from_bits_retain(bit);
        assert_nothing(uffd.poison(start, page(), mode), Errno::EINVAL);
        let mode = ContinueMode::from_bits_retain(bit);
        assert_nothing(uffd.r#continue(start, page(), mode), Errno::EINVAL);
    }
}

#[test]
fn install_enoent() {
    if !supported(Features::POISON) {
        return;
    }
    let (uffd, mapping) = missing(2);
    let unregistered = Mapping::anonymous(1);
    for start in [unregistered.start(), unmapped()] {
        assert_installs_nothing(&uffd, start, page(), Errno::ENOENT);
    }
    // Registered all of it, but two mappings now.
    mapping.protect(1, 1, ProtFlags::PROT_READ);
    assert_installs_nothing(&uffd, mapping.start(), 2 * page(), Errno::ENOENT);
}

#[test]
fn copy_efault() {
    let (uffd, mapping) = missing(2);
    let copy = |to, from: *const u8| {
        // SAFETY: the kernel checks both ranges.
        unsafe { uffd.copy(to, from, page(), CopyMode::empty()) }
    };
    assert_nothing(copy(mapping.start(), unmapped()), Errno::EFAULT);
    assert_nothing(copy(mapping.start(), mapping.at(1)), Errno::EFAULT); // itself missing
    let shared = Mapping::file(&memfd(1), 2, MapFlags::MAP_SHARED);
    register(&uffd, &shared, MISSING);
    let source = vec![1; page()];
    assert_nothing(copy(shared.at(1), source.as_ptr()), Errno::EFAULT); // past the end of the file
    assert!(copy(shared.at(0), source.as_ptr()).is_complete());
}

#[test]
fn continue_einval() {
    let (uffd, mapping) = missing(1);
    // SAFETY: the test's own mapping.
    let mapped = unsafe { uffd.r#continue(mapping.start(), page(), ContinueMode::empty()) };
    assert_nothing(mapped, Errno::EINVAL); // anonymous memory has no page cache
}

#[test]
fn continue_efault() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let (uffd, shared) =
        (open(Features::SIGBUS), Mapping::file(&memfd(1), 1, MapFlags::MAP_SHARED));
    register(&uffd, &shared, RegisterMode::MINOR);
    // SAFETY: the test's own mapping.
    let mapped = unsafe { uffd.r#continue(shared.start(), page(), ContinueMode::empty()) };
    assert_nothing(mapped, Errno::EFAULT); // the file is a hole
}

#[test]
fn write_protect_einval() {
    let (uffd, mapping) = (open(Features::SIGBUS), Mapping::anonymous(1));
    register(&uffd, &mapping, MISSING | RegisterMode::WP);
    let protect = |start, len, mode| {
        // SAFETY: the test's own mapping.
        let outcome = unsafe { uffd.write_protect(start, len, mode) };
        assert_error(outcome, Operation::WriteProtect, Errno::EINVAL);
    };
    for (start, len) in bad_ranges(&mapping) {
        protect(start, len, WriteProtectMode::WP);
    }
    let both = WriteProtectMode::WP | WriteProtectMode::DONTWAKE;
    protect(mapping.start(), page(), both);
    protect(mapping.start(), page(), WriteProtectMode::from_bits_retain(1 << 40));
}

#[test]
fn write_protect_enoent() {
    let (uffd, mapping) = missing(1); // without WP
    for start in [mapping.start(), unmapped()] {
        // SAFETY: the test's own mapping.
        let outcome = unsafe { uffd.write_protect(start, page(), WriteProtectMode::WP) };
        assert_error(outcome, Operation::WriteProtect, Errno::ENOENT);
    }
}

#[test]
fn wake_einval() {
    let (uffd, mapping) = missing(1);
    for (start, len) in bad_ranges(&mapping) {
        assert_error(uffd.wake(start, len), Operation::Wake, Errno::EINVAL);
    }
    assert_eq!(uffd.wake(unmapped(), page()), Ok(()));
}

/// The process that opened the userfaultfd has exited: its memory is gone.
#[test]
fn the_owner_is_gone() {
    if !supported(Features::POISON | Features::MOVE) {
        return;
    }
    let (uffd, mapping) = (orphan(Features::SIGBUS), Mapping::anonymous(2));
    let (start, len) = (mapping.start(), page());
    assert_installs_nothing(&uffd, start, len, Errno::ESRCH);
    // SAFETY: nothing is left that these could change.
    unsafe {
        let protected = uffd.write_protect(start, len, WriteProtectMode::WP);
        assert_error(protected, Operation::WriteProtect, Errno::ESRCH);
        assert_error(uffd.register(start, len, MISSING), Operation::Register, Errno::ENOMEM);
        assert_error(uffd.unregister(start, len), Operation::Unregister, Errno::ENOMEM);
        let moved = uffd.move_pages(start, mapping.at(1), len, MoveMode::empty());
        assert_nothing(moved, Errno::EINVAL);
    }
    assert_eq!(uffd.wake(start, len), Ok(()));
    assert!(uffd.read_event().unwrap().is_none());
}

#[test]
fn read_eintr() {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn ignore(_: i32) {}
    // Without SA_RESTART.
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.unwrap();
    let uffd = Uffd::builder().features(Features::SIGBUS).open().unwrap(); // nothing ever comes
    let reader = std::thread::spawn(move || uffd.read_event());
    while !reader.is_finished() {
        // SAFETY: the thread has not been joined, so its id is valid.
        unsafe { libc::pthread_kill(reader.as_pthread_t(), libc::SIGUSR1) };
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_error(reader.join().unwrap(), Operation::ReadEvent, Errno::EINTR);
}
