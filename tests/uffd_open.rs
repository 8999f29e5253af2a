//! Opening a userfaultfd: the handshake, its refusals, and the ways around a denied system call.
//!
//! | operation | errno | test |
//! |---|---|---|
//! | userfaultfd(2) | EPERM | `denied_by_seccomp_*`, `user_mode_only_needs_no_privilege` |
//! | userfaultfd(2) | ENOSYS, EACCES | `denied_by_seccomp_*` |
//! | userfaultfd(2) | EINVAL | `linux_before_5_11_does_not_know_user_mode_only` |
//! | userfaultfd(2) | EMFILE | `no_descriptor_left` |
//! | userfaultfd(2) | ENFILE, ENOMEM | not provoked: they need the whole system exhausted |
//! | UFFDIO_API | EINVAL | `the_kernel_refuses_*`, `a_second_handshake_is_refused` |
//! | UFFDIO_API | EFAULT | `the_kernel_refuses_a_bad_argument` |
//! | UFFDIO_API | EPERM | `uffd_events.rs`, `fork_is_an_event_for_the_privileged` |
//! | any other | EINVAL before the handshake | `nothing_works_before_the_handshake` |

mod uffd_support;

use lacuna::uffd::{Features, Ioctls, Uffd};
use lacuna::{Errno, ErrorKind, Operation};
use linux_raw_sys::general as abi;
use linux_raw_sys::ioctl as request;
use std::ffi::c_int;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use uffd_support::process::succeeds_alone;
use uffd_support::{fill, loudly, missing, open};

#[test]
fn probe_reports_what_the_kernel_has() {
    let support = Uffd::probe().unwrap();
    assert!(support.features.contains(Features::SIGBUS | Features::EVENTS | Features::THREAD_ID));
    assert_eq!(support.ioctls, Ioctls::API | Ioctls::REGISTER | Ioctls::UNREGISTER);
    // Probing uses a descriptor of its own, so it can be repeated.
    assert_eq!(Uffd::probe(), Ok(support));
}

#[test]
fn every_feature_that_needs_no_privilege_can_be_enabled() {
    let named = Uffd::probe().unwrap().features.iter_names().map(|(_, feature)| feature);
    let features: Features = named.collect();
    let sigbus = features - Features::EVENTS;
    assert_eq!(open(sigbus).features(), sigbus);
    let events = features - Features::SIGBUS - Features::EVENT_FORK;
    assert_eq!(open(events).features(), events);
    for feature in sigbus.union(events).iter() {
        assert_eq!(open(feature).features(), feature);
    }
}

#[test]
fn unknown_features_are_refused() {
    let bit = Features::from_bits_retain(1 << 63);
    let error = Uffd::builder().features(bit | Features::SIGBUS).open().unwrap_err();
    assert_eq!((error.operation(), error.kind()), (Operation::Api, ErrorKind::Unsupported));
    assert_eq!(error.errno(), None);
    assert!(error.to_string().contains("(0x8000000000000000)"), "{error}");
}

#[test]
fn sigbus_and_events_conflict() {
    for event in Features::EVENTS.iter() {
        let error = Uffd::builder().features(Features::SIGBUS | event).open().unwrap_err();
        assert_eq!((error.operation(), error.kind()), (Operation::Api, ErrorKind::Conflict));
    }
    assert!(Uffd::builder().features(Features::SIGBUS | Features::THREAD_ID).open().is_ok());
}

#[test]
fn descriptors_have_the_flags_that_were_asked_for() {
    for nonblocking in [false, true] {
        let uffd = Uffd::builder().nonblocking(nonblocking).open().unwrap();
        let fd = uffd.as_raw_fd();
        // SAFETY: fcntl(2) with these commands touches no memory.
        let (status, flags) =
            unsafe { (libc::fcntl(fd, libc::F_GETFL), libc::fcntl(fd, libc::F_GETFD)) };
        assert_eq!(status & libc::O_NONBLOCK != 0, nonblocking);
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
    }
}

#[test]
fn parts_and_borrows_are_the_same_userfaultfd() {
    let (uffd, mapping) = missing(2);
    let borrowed: Uffd<BorrowedFd<'_>> = uffd.borrow();
    assert_eq!(borrowed.as_raw_fd(), uffd.as_fd().as_raw_fd());
    assert_eq!(borrowed.features(), Features::SIGBUS);
    let features = uffd.features();
    // SAFETY: the descriptor is the userfaultfd it has just been taken from.
    let uffd: Uffd = unsafe { Uffd::from_parts(OwnedFd::from(uffd), features) };
    fill(&uffd, &mapping, 1, 7);
    assert_eq!(mapping.read(1), 7);
}

/// Closing the last descriptor makes missing pages ordinary again.
#[test]
fn dropping_unregisters() {
    // Alone: a process that another test is spawning has all descriptors until it executes.
    succeeds_alone("dropping_unregisters", || {
        let (uffd, mapping) = missing(2);
        fill(&uffd, &mapping, 0, 7);
        drop(uffd);
        assert_eq!((mapping.read(0), mapping.read(1)), (7, 0));
    });
}

#[test]
fn user_mode_only_needs_no_privilege() {
    let privileged = raw(0);
    let device = File::options().read(true).write(true).open("/dev/userfaultfd").is_ok();
    let all = Uffd::builder().user_mode_only(false).open();
    match privileged {
        Ok(_) => assert!(all.is_ok()),
        Err(errno) if !device => {
            assert_eq!(errno, Errno::EPERM);
            let error = all.unwrap_err();
            assert_eq!((error.operation(), error.errno()), (Operation::Open, Some(errno)));
            assert!(error.hint().is_some());
        }
        Err(_) => assert!(all.is_ok(), "the device does not help"),
    }
    assert!(Uffd::builder().user_mode_only(true).open().is_ok());
}

#[test]
fn denied_by_seccomp_with_eperm() {
    succeeds_alone("denied_by_seccomp_with_eperm", || denied_with(Errno::EPERM));
}

#[test]
fn denied_by_seccomp_with_enosys() {
    succeeds_alone("denied_by_seccomp_with_enosys", || denied_with(Errno::ENOSYS));
}

#[test]
fn denied_by_seccomp_with_eacces() {
    succeeds_alone("denied_by_seccomp_with_eacces", || denied_with(Errno::EACCES));
}

/// The device serves who may open it; everybody else learns what the system call said.
fn denied_with(errno: Errno) {
    let device = File::options().read(true).write(true).open("/dev/userfaultfd");
    deny_userfaultfd(0, errno);
    assert_eq!(raw(0).unwrap_err(), errno);
    match device {
        Ok(_) => {
            loudly("    /dev/userfaultfd stands in for the system call");
            let (uffd, mapping) = missing(1);
            fill(&uffd, &mapping, 0, 3);
            assert_eq!(mapping.read(0), 3);
            assert!(Uffd::builder().user_mode_only(false).open().is_ok());
        }
        Err(_) => {
            let error = Uffd::builder().open().unwrap_err();
            assert_eq!((error.operation(), error.kind()), (Operation::Open, ErrorKind::Os));
            assert_eq!(error.errno(), Some(errno));
            assert_eq!(Uffd::probe(), Err(error));
        }
    }
}

#[test]
fn linux_before_5_11_does_not_know_user_mode_only() {
    succeeds_alone("linux_before_5_11_does_not_know_user_mode_only", || {
        let privileged = raw(0);
        deny_userfaultfd(abi::UFFD_USER_MODE_ONLY, Errno::EINVAL);
        assert_eq!(raw(abi::UFFD_USER_MODE_ONLY as c_int).unwrap_err(), Errno::EINVAL);
        let opened = Uffd::builder().open();
        match privileged {
            Ok(_) => assert!(opened.is_ok()),
            Err(errno) => assert_eq!(opened.unwrap_err().errno(), Some(errno)),
        }
    });
}

#[test]
fn no_descriptor_left() {
    succeeds_alone("no_descriptor_left", || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a valid rlimit, for a limit of this process alone.
        unsafe {
            libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
            let none = libc::rlimit { rlim_cur: 0, ..limit };
            assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const none), 0);
        }
        let error = Uffd::builder().open().unwrap_err();
        // SAFETY: as above.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
        assert_eq!((error.operation(), error.errno()), (Operation::Open, Some(Errno::EMFILE)));
        assert!(error.hint().is_some());
    });
}

#[test]
fn the_kernel_refuses_other_api_versions_and_unknown_bits() {
    let fd = raw(abi::UFFD_USER_MODE_ONLY as c_int).unwrap();
    assert_eq!(handshake(&fd, 0xAB, 0).unwrap_err(), Errno::EINVAL);
    assert_eq!(handshake(&fd, 0xAA, 1 << 63).unwrap_err(), Errno::EINVAL);
    // Neither counts as the one handshake that a userfaultfd gets.
    assert!(handshake(&fd, 0xAA, 0).is_ok());
}

#[test]
fn a_second_handshake_is_refused() {
    let probed = raw(abi::UFFD_USER_MODE_ONLY as c_int).unwrap();
    assert!(handshake(&probed, 0xAA, 0).is_ok());
    assert_eq!(handshake(&probed, 0xAA, 0).unwrap_err(), Errno::EINVAL);
    assert_eq!(
        handshake(&probed, 0xAA, Features::SIGBUS.bits()).unwrap_err(),
        Errno::EINVAL,
        "this is why opening needs two descriptors"
    );
    assert_eq!(handshake(&open(Features::SIGBUS), 0xAA, 0).unwrap_err(), Errno::EINVAL);
}

#[test]
fn the_kernel_refuses_a_bad_argument() {
    let fd = raw(abi::UFFD_USER_MODE_ONLY as c_int).unwrap();
    // SAFETY: the kernel checks the address, which is never mapped.
    let outcome = unsafe { libc::ioctl(fd.as_raw_fd(), request::UFFDIO_API as _, 8_usize) };
    assert_eq!(Errno::result(outcome), Err(Errno::EFAULT));
}

#[test]
fn nothing_works_before_the_handshake() {
    let fd = raw(abi::UFFD_USER_MODE_ONLY as c_int).unwrap();
    // SAFETY: it is a userfaultfd, if one without the handshake, and nothing is registered.
    let uffd = unsafe { Uffd::from_parts(fd, Features::empty()) };
    let error = uffd.read_event().unwrap_err();
    assert_eq!((error.operation(), error.errno()), (Operation::ReadEvent, Some(Errno::EINVAL)));
    let mapping = uffd_support::Mapping::anonymous(1);
    let error = uffd.wake(mapping.start(), mapping.len()).unwrap_err();
    assert_eq!((error.operation(), error.errno()), (Operation::Wake, Some(Errno::EINVAL)));
    assert_eq!(error.kind(), ErrorKind::Os);
}

/// userfaultfd(2), no handshake.
fn raw(flags: c_int) -> Result<OwnedFd, Errno> {
    let flags = libc::O_CLOEXEC | flags;
    // SAFETY: takes an integer.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) })?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as c_int) })
}

fn handshake(fd: &impl AsFd, api: u64, features: u64) -> Result<c_int, Errno> {
    let mut argument = abi::uffdio_api { api, features, ioctls: 0 };
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the argument that belongs to the request.
    Errno::result(unsafe { libc::ioctl(fd, request::UFFDIO_API as _, &raw mut argument) })
}

/// From now on userfaultfd(2) fails with `errno` in this thread if it has one of `flags`, or in
/// any case if `flags` is 0.
fn deny_userfaultfd(flags: u32, errno: Errno) {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    // Offsets in seccomp_data: the system call's number, and the low half of its first argument.
    const NUMBER: u32 = 0;
    const ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };
    let any = if flags == 0 { libc::BPF_JGE } else { libc::BPF_JSET };
    let deny = libc::SECCOMP_RET_ERRNO | errno as u32;
    // SAFETY: these two only put their arguments into a struct.
    let mut program = unsafe {
        [
            libc::BPF_STMT(LOAD as u16, NUMBER),
            jump(libc::BPF_JEQ, libc::SYS_userfaultfd as u32, 0, 3),
            libc::BPF_STMT(LOAD as u16, ARGUMENT),
            jump(any, flags, 0, 1),
            libc::BPF_STMT(libc::BPF_RET as u16, deny),
            libc::BPF_STMT(libc::BPF_RET as u16, libc::SECCOMP_RET_ALLOW),
        ]
    };
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies the program, which is valid for the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter), 0);
    }
}

fn jump(condition: u32, value: u32, yes: u8, no: u8) -> libc::sock_filter {
    let code = (libc::BPF_JMP | condition | libc::BPF_K) as u16;
    // SAFETY: only puts its arguments into a struct.
    unsafe { libc::BPF_JUMP(code, value, yes, no) }
}
