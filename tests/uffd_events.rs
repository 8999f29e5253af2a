//! Without SIGBUS mode: page faults and changes of the memory map as events that another thread
//! reads. The kernel's selftests `events`, `events-wp`, `minor` and `mmap-changing` state the same
//! in C.

mod uffd_support;

use lacuna::uffd::{
    ContinueMode, CopyMode, Event, EventBuffer, Features, MoveMode, PagefaultFlags, PoisonMode,
    RegisterMode, Uffd, WriteProtectMode, ZeropageMode,
};
use lacuna::{Errno, Operation};
use nix::sys::mman::MapFlags;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uffd_support::process::{fork, succeeds_alone};
use uffd_support::{Mapping, fill, memfd, open, page, register, supported};

/// Long enough for anything that is going to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until an event is queued, without taking it.
fn queued(uffd: &Uffd) {
    let mut poll = libc::pollfd { fd: uffd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    let ready = unsafe { libc::poll(&raw mut poll, 1, PATIENCE.as_millis() as i32) };
    assert_eq!((ready, poll.revents), (1, libc::POLLIN), "no event within {PATIENCE:?}");
}

fn next(uffd: &Uffd) -> Event {
    queued(uffd);
    uffd.read_event().unwrap().unwrap()
}

/// The next event, which must be a page fault.
fn fault(uffd: &Uffd) -> (usize, PagefaultFlags, Option<u32>) {
    match next(uffd) {
        Event::Pagefault { address, flags, thread } => (address, flags, thread),
        other => panic!("expected a page fault, got {other:?}"),
    }
}

fn registered(features: Features, pages: usize) -> (Uffd, Mapping) {
    let (uffd, mapping) = (open(features), Mapping::anonymous(pages));
    register(&uffd, &mapping, RegisterMode::MISSING);
    (uffd, mapping)
}

#[test]
fn a_fault_is_an_event_with_its_page_and_kind() {
    let (uffd, mapping) = registered(Features::empty(), 2);
    assert!(uffd.read_event().unwrap().is_none());
    thread::scope(|scope| {
        // The address is cut to the page, the access is told apart, the thread is not told.
        // SAFETY: inside the mapping.
        let reader = scope.spawn(|| unsafe { mapping.at(0).add(42).read_volatile() });
        let start = mapping.start() as usize;
        assert_eq!(fault(&uffd), (start, PagefaultFlags::empty(), None));
        fill(&uffd, &mapping, 0, 7);
        assert_eq!(reader.join().unwrap(), 7);

        let writer = scope.spawn(|| mapping.write(1, 3));
        assert_eq!(fault(&uffd), (start + page(), PagefaultFlags::WRITE, None));
        fill(&uffd, &mapping, 1, 7);
        writer.join().unwrap();
    });
    assert_eq!(mapping.read(1), 3);
    assert!(uffd.read_event().unwrap().is_none());
}

#[test]
fn the_exact_address_and_the_thread_on_request() {
    if !supported(Features::EXACT_ADDRESS) {
        return;
    }
    let (uffd, mapping) = registered(Features::EXACT_ADDRESS | Features::THREAD_ID, 1);
    let toucher = AtomicU32::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: gettid(2) has no preconditions; the byte lies inside the mapping.
            unsafe {
                toucher.store(libc::gettid() as u32, Ordering::Relaxed);
                mapping.start().add(42).read_volatile()
            }
        });
        let (address, _, thread) = fault(&uffd);
        assert_eq!(address, mapping.start() as usize + 42);
        assert_eq!(thread, Some(toucher.load(Ordering::Relaxed)));
        fill(&uffd, &mapping, 0, 1);
    });
}

#[test]
fn nobody_wakes_until_wake() {
    let (uffd, mapping) = registered(Features::empty(), 3);
    let source = vec![5; page()];
    // SAFETY: the mapping is the test's own, here and below.
    let installs: [&dyn Fn(usize) -> bool; 2] = [
        &|index| unsafe {
            let mode = CopyMode::DONTWAKE;
            uffd.copy(mapping.at(index), source.as_ptr(), page(), mode).is_complete()
        },
        &|index| unsafe {
            uffd.zeropage(mapping.at(index), page(), ZeropageMode::DONTWAKE).is_complete()
        },
    ];
    for (index, install) in installs.into_iter().enumerate() {
        thread::scope(|scope| {
            let reader = scope.spawn(|| mapping.read(index));
            fault(&uffd);
            assert!(install(index));
            thread::sleep(Duration::from_millis(100));
            assert!(!reader.is_finished(), "woken in spite of DONTWAKE");
            uffd.wake(mapping.at(index), page()).unwrap();
            assert_eq!(reader.join().unwrap(), [5, 0][index]);
        });
    }
    // Waking early is harmless: the thread faults again.
    thread::scope(|scope| {
        let reader = scope.spawn(|| mapping.read(2));
        fault(&uffd);
        uffd.wake(mapping.start(), mapping.len()).unwrap();
        assert_eq!(fault(&uffd).0, mapping.at(2) as usize);
        fill(&uffd, &mapping, 2, 8);
        assert_eq!(reader.join().unwrap(), 8);
    });
}

#[test]
fn a_blocking_read_waits_for_the_event() {
    let (uffd, mapping) = (Uffd::builder().open().unwrap(), Mapping::anonymous(1));
    register(&uffd, &mapping, RegisterMode::MISSING);
    thread::scope(|scope| {
        let monitor = scope.spawn(|| {
            let event = uffd.read_event().unwrap();
            fill(&uffd, &mapping, 0, 6);
            event
        });
        thread::sleep(Duration::from_millis(20));
        assert!(!monitor.is_finished());
        assert_eq!(mapping.read(0), 6);
        assert!(matches!(monitor.join().unwrap(), Some(Event::Pagefault { .. })));
    });
}

#[test]
fn write_protection_is_an_event() {
    let (uffd, mapping) = (open(Features::empty()), Mapping::anonymous(1));
    register(&uffd, &mapping, RegisterMode::MISSING | RegisterMode::WP);
    let source = vec![1; page()];
    // SAFETY: the mapping is the test's own.
    let copied = unsafe { uffd.copy(mapping.start(), source.as_ptr(), page(), CopyMode::WP) };
    assert!(copied.is_complete());
    thread::scope(|scope| {
        let writer = scope.spawn(|| mapping.write(0, 2));
        assert_eq!(fault(&uffd).1, PagefaultFlags::WP | PagefaultFlags::WRITE);
        assert_eq!(mapping.read(0), 1);
        let lift = |mode| {
            // SAFETY: as above.
            unsafe { uffd.write_protect(mapping.start(), page(), mode) }
        };
        lift(WriteProtectMode::DONTWAKE).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(!writer.is_finished(), "woken in spite of DONTWAKE");
        lift(WriteProtectMode::empty()).unwrap();
    });
    assert_eq!(mapping.read(0), 2);
}

#[test]
fn a_minor_fault_is_an_event() {
    if !supported(Features::MINOR_SHMEM) {
        return;
    }
    let file = memfd(1);
    file.write_all_at(&[9], 0).unwrap();
    let (uffd, mapping) = (open(Features::empty()), Mapping::file(&file, 1, MapFlags::MAP_SHARED));
    register(&uffd, &mapping, RegisterMode::MINOR);
    thread::scope(|scope| {
        let reader = scope.spawn(|| mapping.read(0));
        assert_eq!(fault(&uffd).1, PagefaultFlags::MINOR);
        // SAFETY: the mapping is the test's own.
        let mapped = unsafe { uffd.r#continue(mapping.start(), page(), ContinueMode::empty()) };
        assert_eq!(mapped.into_result(), Ok(page()));
        assert_eq!(reader.join().unwrap(), 9);
    });
}

/// What nobody takes from a batch is dropped with it, and several faults fit one read(2).
#[test]
fn events_are_read_in_batches() {
    const READERS: usize = 3;
    let (uffd, mapping) = registered(Features::empty(), READERS);
    let error = uffd.read_events(&mut EventBuffer::<0>::new()).unwrap_err();
    assert_eq!((error.operation(), error.errno()), (Operation::ReadEvent, Some(Errno::EINVAL)));
    let mut buffer = EventBuffer::<8>::new();
    assert_eq!(uffd.read_events(&mut buffer).unwrap().len(), 0);
    thread::scope(|scope| {
        let mapping = &mapping;
        for index in 0..READERS {
            scope.spawn(move || mapping.read(index));
        }
        let (mut seen, begin) = ([false; READERS], Instant::now());
        while seen != [true; READERS] && begin.elapsed() < PATIENCE {
            queued(&uffd);
            for event in uffd.read_events(&mut buffer).unwrap() {
                let Event::Pagefault { address, .. } = event else { panic!("{event:?}") };
                seen[(address - mapping.start() as usize) / page()] = true;
            }
        }
        (0..READERS).for_each(|index| fill(&uffd, mapping, index, 1));
        assert_eq!(seen, [true; READERS]);
    });
}

#[test]
fn discarding_is_an_event() {
    let (uffd, mapping) = registered(Features::EVENT_REMOVE, 4);
    fill(&uffd, &mapping, 2, 1);
    thread::scope(|scope| {
        let discarder = scope.spawn(|| mapping.advise(1, 2, libc::MADV_DONTNEED));
        let (start, end) = (mapping.at(1) as usize, mapping.at(3) as usize);
        match next(&uffd) {
            Event::Remove { start: from, end: to } => assert_eq!((from, to), (start, end)),
            other => panic!("{other:?}"),
        }
        discarder.join().unwrap();
    });
    fill(&uffd, &mapping, 2, 2);
    assert_eq!(mapping.read(2), 2);
}

#[test]
fn unmapping_is_an_event() {
    let (uffd, mapping) = registered(Features::EVENT_UNMAP, 4);
    let (start, end) = (mapping.start() as usize, mapping.at(4) as usize);
    thread::scope(|scope| {
        scope.spawn(|| drop(mapping));
        match next(&uffd) {
            Event::Unmap { start: from, end: to } => assert_eq!((from, to), (start, end)),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn remapping_is_an_event_and_keeps_the_registration() {
    let (uffd, mapping) = registered(Features::EVENT_REMAP, 2);
    let (from, len) = (mapping.start() as usize, mapping.len());
    let target = Mapping::anonymous(2);
    let to = target.start() as usize;
    thread::scope(|scope| {
        scope.spawn(|| {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            let (old, new) = (mapping.start().cast(), target.start());
            // SAFETY: both mappings are the test's own; the second takes the place of the first.
            let moved = unsafe { libc::mremap(old, len, len, flags, new) };
            assert_eq!(moved as usize, to);
        });
        match next(&uffd) {
            Event::Remap { from: a, to: b, len: c } => assert_eq!((a, b, c), (from, to, len)),
            other => panic!("{other:?}"),
        }
    });
    mapping.gone();
    fill(&uffd, &target, 1, 4);
    assert_eq!(target.read(1), 4);
}

/// While an event waits, operations are refused with EAGAIN and do nothing.
#[test]
fn nothing_is_installed_while_the_map_is_changing() {
    if !supported(Features::MOVE | Features::POISON | Features::MINOR_SHMEM) {
        return;
    }
    let (uffd, file) = (open(Features::EVENT_REMOVE), memfd(1));
    file.write_all_at(&[9], 0).unwrap();
    let (mapping, shared) = (Mapping::anonymous(4), Mapping::file(&file, 1, MapFlags::MAP_SHARED));
    let source = Mapping::anonymous(1);
    source.write(0, 3);
    register(&uffd, &mapping, RegisterMode::MISSING | RegisterMode::WP);
    register(&uffd, &shared, RegisterMode::MINOR);
    // SAFETY: the mappings are the test's own.
    let attempts = || unsafe {
        let (one, from) = (page(), source.start());
        let protect = uffd.write_protect(mapping.at(0), one, WriteProtectMode::WP);
        [
            ("copy", uffd.copy(mapping.at(0), from, one, CopyMode::empty())),
            ("zeropage", uffd.zeropage(mapping.at(1), one, ZeropageMode::empty())),
            ("poison", uffd.poison(mapping.at(2), one, PoisonMode::empty())),
            ("continue", uffd.r#continue(shared.at(0), one, ContinueMode::empty())),
            ("move", uffd.move_pages(mapping.at(3), from, one, MoveMode::empty())),
        ]
        .map(|(name, progress)| (name, progress.bytes(), progress.errno()))
        .into_iter()
        .chain([("write_protect", 0, protect.err().and_then(|error| error.errno()))])
        .collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        scope.spawn(|| mapping.advise(0, 4, libc::MADV_DONTNEED));
        queued(&uffd);
        for (name, bytes, errno) in attempts() {
            assert_eq!((bytes, errno), (0, Some(Errno::EAGAIN)), "{name}");
        }
        assert!(matches!(next(&uffd), Event::Remove { .. }));
    });
    for (name, bytes, errno) in attempts() {
        let done = if name == "write_protect" { 0 } else { page() };
        assert_eq!((bytes, errno), (done, None), "{name}");
    }
}

/// The child has a userfaultfd of its own; without CAP_SYS_PTRACE the kernel refuses the feature.
#[test]
fn fork_is_an_event_for_the_privileged() {
    // Alone: a fork makes the pages of every test busy for MOVE.
    succeeds_alone("fork_is_an_event_for_the_privileged", fork_is_an_event);
}

fn fork_is_an_event() {
    let opened = Uffd::builder().features(Features::EVENT_FORK).nonblocking(true).open();
    let uffd = match opened {
        Ok(uffd) => uffd,
        Err(error) => {
            assert_eq!((error.operation(), error.errno()), (Operation::Api, Some(Errno::EPERM)));
            assert!(!has_sys_ptrace(), "CAP_SYS_PTRACE, and still {error}");
            return;
        }
    };
    assert!(has_sys_ptrace());
    let mapping = Mapping::anonymous(2);
    register(&uffd, &mapping, RegisterMode::MISSING);
    fill(&uffd, &mapping, 0, 10);
    thread::scope(|scope| {
        // The child touches what it inherited and what is missing in its memory only.
        let forker = scope
            .spawn(|| fork(|| i32::from(mapping.read(0)) + i32::from(mapping.read(1))).exit_code());
        let Event::Fork { uffd: child } = next(&uffd) else { panic!("no fork event") };
        assert_eq!(child.features(), Features::EVENT_FORK);
        assert_ne!(child.as_raw_fd(), uffd.as_raw_fd());
        assert_eq!(fault(&child).0, mapping.at(1) as usize);
        fill(&child, &mapping, 1, 20);
        assert_eq!(forker.join().unwrap(), 30);
    });
    // The parent's own page is missing still.
    fill(&uffd, &mapping, 1, 5);
    assert_eq!(mapping.read(1), 5);
    events_that_are_not_taken_close_their_descriptor(&uffd);
}

/// With its userfaultfd closed, the child's memory is ordinary and its missing page zero.
fn events_that_are_not_taken_close_their_descriptor(uffd: &Uffd) {
    let mapping = Mapping::anonymous(1);
    register(uffd, &mapping, RegisterMode::MISSING);
    thread::scope(|scope| {
        let forker = scope.spawn(|| fork(|| 40 + i32::from(mapping.read(0))).exit_code());
        queued(uffd);
        let mut buffer = EventBuffer::<4>::new();
        let events = uffd.read_events(&mut buffer).unwrap();
        assert_eq!(events.len(), 1);
        drop(events);
        assert_eq!(forker.join().unwrap(), 40);
    });
}

/// Bit 19 of the effective capabilities.
fn has_sys_ptrace() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 19 != 0
}
