//! Memory that is locked: mlock(2) and mlockall(2).

use crate::support::{Watchdog, arena_rss, discard, file_of, load, noise, smaps_of, store};
use crate::{MIB, World, assert_error, builder, on_both, set_limit, status};
use lacuna::{Arena, Backend, Errno, Heap, Lacuna, Operation, SparseArray, Template, page_size};
use std::alloc::{GlobalAlloc, Layout};

/// Small enough that a kernel which fills it does no harm, and large enough to be seen.
const LEN: usize = 512 * MIB;

/// Has the kernel lock what there is, or what is mapped from here on.
fn lock_all(flags: i32) -> bool {
    set_limit(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY);
    // SAFETY: it changes no content.
    unsafe { libc::mlockall(flags) == 0 }
}

/// Whether this process may lock more than a few MiB; says so if not.
fn may_lock() -> bool {
    set_limit(libc::RLIMIT_MEMLOCK, libc::RLIM_INFINITY);
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: asks for a limit; the capabilities are asked for by number.
    let may = unsafe {
        libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit);
        limit.rlim_cur == libc::RLIM_INFINITY || (libc::geteuid() == 0 && has_capability())
    };
    if !may {
        eprintln!("NOT TESTED: RLIMIT_MEMLOCK is too low to lock memory of arenas' size");
    }
    may
}

const CAP_IPC_LOCK: u32 = 14;

fn has_capability() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    u64::from_str_radix(line.trim(), 16).unwrap() & 1 << CAP_IPC_LOCK != 0
}

/// Gives up every capability of this thread.
fn drop_capabilities() {
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    // SAFETY: version 3 of the header, which takes two sets of three words.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    assert_eq!(result, 0);
}

/// Asserts that hardly any memory has been filled, or locked, since `before`.
#[track_caller]
fn assert_little(before: [usize; 2], what: &str) {
    let after = memory();
    for (before, after) in before.into_iter().zip(after) {
        let more = after.saturating_sub(before) / MIB;
        assert!(more < 100, "{what}: {more} MiB more");
    }
}

/// What is memory, and what of the address space is locked.
fn memory() -> [usize; 2] {
    [status("VmRSS:"), status("VmLck:")]
}

/// With `MCL_FUTURE` the kernel fills mappings when they are made.
#[test]
fn reservations_are_not_filled_by_mlockall() {
    if !may_lock() {
        return;
    }
    on_both("locked::reservations_are_not_filled_by_mlockall", |backend| {
        let _watchdog = Watchdog::new("mlockall", 50);
        assert!(lock_all(libc::MCL_CURRENT | libc::MCL_FUTURE));
        let before = memory();
        let world = World::new(backend, LEN);
        assert_little(before, "reserving");
        let file = file_of(&noise(256 * MIB, 1)[..]);
        let before = memory();
        let template = Template::file(&file).unwrap();
        let image = builder(backend, LEN).template(template).reserve().unwrap();
        _ = load(&image, 100 * MIB);
        assert_little(before, "the image of a file");
        let mut array = SparseArray::<u64>::filled(LEN / 8, 3).unwrap();
        array[LEN / 16] = 1;
        assert_little(before, "an array");
        world.touch(0);
        world.touch(96 * MIB);
        // Nothing is locked, so it can be dropped.
        discard(&world.zero, 0..LEN / 2);
        world.assert_exact();
        assert_eq!(world.allocate(), 5);
    });
}

#[test]
fn heaps_are_not_filled_by_mlockall() {
    static GLOBAL: Lacuna = Lacuna::new().reserve(LEN);
    if !may_lock() {
        return;
    }
    on_both("locked::heaps_are_not_filled_by_mlockall", |backend| {
        assert!(lock_all(libc::MCL_FUTURE));
        let before = memory();
        let heap = Heap::new(builder(backend, LEN).reserve().unwrap()).unwrap();
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        // SAFETY: each block is used as its layout says, and freed with it.
        unsafe {
            let heaps: [&dyn GlobalAlloc; 2] = [&heap, &GLOBAL];
            for heap in heaps {
                // Blocks that move to others' places, and leave theirs: those are mapped anew.
                for _ in 0..4 {
                    let mut block = heap.alloc(layout(2 * MIB));
                    block.write(7);
                    for size in [2, 4, 8, 16, 32, 64].map(|it| it * MIB) {
                        let next = heap.alloc(layout(2 * MIB));
                        block = heap.realloc(block, layout(size), 2 * size);
                        assert!(!block.is_null());
                        assert_eq!(block.read(), 7);
                        heap.dealloc(next, layout(2 * MIB));
                    }
                    heap.dealloc(block, layout(128 * MIB));
                }
            }
        }
        assert_little(before, "heaps");
    });
}

/// The way to lock everything in a program with a heap.
#[test]
fn nothing_is_filled_by_being_locked_on_fault() {
    static GLOBAL: Lacuna = Lacuna::new().reserve(LEN);
    if !may_lock() {
        return;
    }
    on_both("locked::nothing_is_filled_by_being_locked_on_fault", |backend| {
        let world = World::new(backend, LEN);
        world.touch(0);
        let layout = Layout::from_size_align(9 * MIB, 8).unwrap();
        // SAFETY: the layout has a size.
        assert!(!unsafe { GLOBAL.alloc(layout) }.is_null());
        let before = status("VmRSS:");
        assert!(lock_all(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT));
        let more = status("VmRSS:").saturating_sub(before) / MIB;
        assert!(more < 100, "{more} MiB more");
        world.touch(64 * MIB);
        for _ in 0..2 {
            assert_eq!(world.allocate(), 5);
            // SAFETY: the block is as long as its layout says, and freed with it.
            unsafe {
                let block = GLOBAL.alloc_zeroed(layout);
                assert!((0..9 * MIB).step_by(page_size()).all(|at| block.add(at).read() == 0));
                block.write_bytes(1, 9 * MIB);
                GLOBAL.dealloc(block, layout);
            }
        }
        // Locked memory stays, and is counted.
        world.assert_exact();
    });
}

/// What is there when everything is locked: what is present, of arenas.
#[test]
fn arenas_are_not_filled_by_being_locked() {
    if !may_lock() {
        return;
    }
    on_both("locked::arenas_are_not_filled_by_being_locked", |backend| {
        let world = World { heap: tiny_heap(backend), ..World::new(backend, LEN) };
        world.touch(0);
        let idle = builder(backend, LEN).reserve().unwrap();
        let before = status("VmRSS:");
        assert!(lock_all(libc::MCL_CURRENT));
        let more = status("VmRSS:").saturating_sub(before);
        // What is lent, staging slots, tables, stacks, the program itself; four arenas would be 2 GiB.
        assert!(more < 200 * MIB, "{} MiB more", more / MIB);
        world.touch(64 * MIB);
        // SAFETY: nobody has a reference into the arena.
        let error = unsafe { world.zero.discard(0..MIB) }.unwrap_err();
        assert_error(&error, Operation::Discard, Errno::EINVAL, "munlock");
        world.zero.measure().unwrap();
        // An arena that was locked becomes a heap that is not.
        let before = memory();
        let heap = Heap::new(idle).unwrap();
        // SAFETY: the layout has a size; the block is not used.
        assert!(!unsafe { heap.alloc(Layout::from_size_align(9 * MIB, 8).unwrap()) }.is_null());
        assert_little(before, "a heap in a locked arena");
        // SAFETY: it changes no content.
        assert_eq!(unsafe { libc::munlockall() }, 0);
        discard(&world.zero, 0..LEN);
        world.touch(128 * MIB);
        world.assert_exact();
    });
}

/// What huge pages are made in is locked as well, and unlocked when it was used.
#[test]
fn huge_pages_outlive_being_locked() {
    let enabled = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    if !enabled.is_ok_and(|text| !text.contains("[never]")) {
        return eprintln!("NOT TESTED: this system has no transparent huge pages");
    }
    if !may_lock() {
        return;
    }
    on_both("locked::huge_pages_outlive_being_locked", |backend| {
        let make = || builder(backend, LEN).template(crate::numbered_pages()).reserve().unwrap();
        let check = |arena: &Arena| {
            arena.populate(0..64 * MIB).unwrap();
            for page in (0..64 * MIB / page_size()).step_by(97) {
                assert_eq!(load(arena, page * page_size() + 2), page as u8);
            }
        };
        let arenas: Vec<_> = (0..4).map(|_| make()).collect();
        assert!(lock_all(libc::MCL_CURRENT));
        arenas.iter().for_each(check);
        let new = make();
        check(&new);
        let huge = smaps_of(new.as_ptr().addr(), new.len(), &["AnonHugePages:"]);
        assert!(huge > 0, "{}", new.stats());
    });
}

/// Heaps' whole address space is the kernel's to fill.
fn tiny_heap(backend: Backend) -> Heap {
    Heap::new(builder(backend, 2 * MIB).reserve().unwrap()).unwrap()
}

#[test]
fn a_reservation_beyond_rlimit_memlock_is_an_error() {
    on_both("locked::a_reservation_beyond_rlimit_memlock_is_an_error", |backend| {
        drop_capabilities();
        let before = set_limit(libc::RLIMIT_MEMLOCK, 64 << 10);
        // SAFETY: it changes no content.
        assert_eq!(unsafe { libc::mlockall(libc::MCL_FUTURE) }, 0);
        for _ in 0..3 {
            let error = builder(backend, LEN).reserve().unwrap_err();
            assert_error(&error, Operation::Map, Errno::EAGAIN, "RLIMIT_MEMLOCK");
        }
        set_limit(libc::RLIMIT_MEMLOCK, before);
        // SAFETY: as above.
        assert_eq!(unsafe { libc::munlockall() }, 0);
        store(&builder(backend, LEN).reserve().unwrap(), 0, 1);
    });
}

/// Part of an arena that its user locks, who may lock 64 KiB of it without privilege.
#[test]
fn a_locked_range_is_kept_and_filled_page_by_page() {
    on_both("locked::a_locked_range_is_kept_and_filled_page_by_page", |backend| {
        let arena = builder(backend, LEN).template(crate::numbered_pages()).reserve().unwrap();
        let number = |page: usize| load(&arena, page * page_size() + 2);
        arena.populate(0..8 * page_size()).unwrap();
        assert_eq!(lock(&arena, 0), 0);
        store(&arena, 9, 5);
        // SAFETY: nobody has a reference into the arena.
        let error = unsafe { arena.discard(0..MIB) }.unwrap_err();
        assert_error(&error, Operation::Discard, Errno::EINVAL, "munlock");
        assert_eq!((load(&arena, 9), number(7)), (5, 7));
        // What is not there yet cannot be filled by the kernel, but is locked when it is touched.
        for chunk in [1usize, 2] {
            assert_eq!(lock(&arena, chunk * 2 * MIB), -1);
        }
        let resident = arena.stats().resident_bytes;
        assert_eq!((resident, arena_rss(&arena)), (8 * page_size(), 8 * page_size()));
        // A stream, which would be filled in huge pages.
        for page in 8..8 * MIB / page_size() {
            assert_eq!(number(page), page as u8);
        }
        // SAFETY: the range is the arena's.
        assert_eq!(unsafe { libc::munlock(arena.as_ptr().cast(), LEN) }, 0);
        discard(&arena, 0..LEN);
        assert_eq!((load(&arena, 9), number(600)), (0, 600u16 as u8));
        assert_eq!(arena.measure().unwrap().resident_bytes, arena_rss(&arena));
    });
}

/// Locks eight pages.
fn lock(arena: &Arena, offset: usize) -> i32 {
    assert!(offset + 8 * page_size() <= arena.len());
    // SAFETY: the range is the arena's, and its content stays.
    unsafe { libc::mlock(arena.as_ptr().add(offset).cast(), 8 * page_size()) }
}
