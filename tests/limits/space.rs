//! Address space.

use crate::support::{Watchdog, discard, load, store};
use crate::{
    MIB, World, assert_error, assert_violation, builder, children, on_both, set_limit, status,
};
use lacuna::{Backend, Errno, Heap, Lacuna, Operation, page_size};
use std::alloc::{GlobalAlloc, Layout};

#[test]
fn a_reservation_beyond_rlimit_as_is_an_error() {
    on_both("space::a_reservation_beyond_rlimit_as_is_an_error", |backend| {
        set_limit(libc::RLIMIT_AS, (status("VmSize:") + 256 * MIB) as u64);
        for _ in 0..3 {
            let error = builder(backend, 1 << 40).reserve().unwrap_err();
            assert_error(&error, Operation::Map, Errno::ENOMEM, "RLIMIT_AS");
        }
        // What does not fit leaves nothing behind.
        for _ in 0..100 {
            let arena = builder(backend, 64 * MIB).reserve().unwrap();
            store(&arena, 0, 1);
            assert_eq!(load(&arena, 40 * MIB), 0);
        }
    });
}

/// A limit that is set later changes nothing for what is reserved.
#[test]
fn arenas_and_heaps_go_on_within_rlimit_as() {
    on_both("space::arenas_and_heaps_go_on_within_rlimit_as", |backend| {
        let _watchdog = Watchdog::new("within RLIMIT_AS", 50);
        let world = World::new(backend, 128 * MIB);
        world.touch(0);
        world.allocate();
        let before = set_limit(libc::RLIMIT_AS, MIB as u64);
        world.touch(48 * MIB);
        world.touch_page(0x7f0_0000);
        discard(&world.zero, 0..64 * MIB);
        discard(&world.numbered, 48 * MIB..50 * MIB);
        world.zero.populate(16 * MIB..32 * MIB).unwrap();
        world.zero.measure().unwrap();
        assert_eq!(world.allocate(), 5);
        let error = builder(backend, 1 << 30).reserve().unwrap_err();
        assert_error(&error, Operation::Map, Errno::ENOMEM, "RLIMIT_AS");
        // SAFETY: the layout has a size.
        let block = unsafe { world.heap.alloc(Layout::from_size_align(1 << 30, 8).unwrap()) };
        assert!(block.is_null());
        set_limit(libc::RLIMIT_AS, before);
        world.touch_page(2 * page_size() + 48 * MIB + 4 * MIB);
        world.assert_exact();
        builder(backend, 1 << 30).reserve().unwrap();
    });
}

#[test]
fn heaps_that_rlimit_as_has_no_room_for_are_refused_or_null() {
    static TOO_LATE: Lacuna = Lacuna::new();
    on_both("space::heaps_that_rlimit_as_has_no_room_for_are_refused_or_null", |backend| {
        let arena = builder(backend, 1 << 36).reserve().unwrap();
        let before = set_limit(libc::RLIMIT_AS, MIB as u64);
        // Its tables take address space of their own.
        let error = Heap::new(arena).unwrap_err();
        assert_error(&error, Operation::Map, Errno::ENOMEM, "RLIMIT_AS");
        let layout = Layout::from_size_align(100, 8).unwrap();
        // SAFETY: the layout has a size; the block is freed with it.
        unsafe {
            assert!(TOO_LATE.alloc(layout).is_null());
            set_limit(libc::RLIMIT_AS, before);
            let block = TOO_LATE.alloc(layout);
            assert!(!block.is_null());
            TOO_LATE.dealloc(block, layout);
        }
    });
}

/// `RLIMIT_DATA` counts what is accessible: all of a reservation, or what was touched of it. So does
/// the kernel where `vm.overcommit_memory` is 2.
#[test]
fn rlimit_data_counts_what_is_accessible() {
    let name = "space::rlimit_data_counts_what_is_accessible";
    for (backend, output) in children(name, |backend| {
        set_limit(libc::RLIMIT_DATA, (status("VmData:") + 128 * MIB) as u64);
        match builder(backend, 1 << 40).reserve() {
            Err(error) => {
                assert_error(&error, Operation::Map, Errno::ENOMEM, "RLIMIT_DATA");
                println!("refused");
            }
            Ok(arena) => {
                for offset in (0..1 << 30).step_by(page_size()) {
                    store(&arena, offset, 1);
                }
            }
        }
    }) {
        if backend == Backend::Mprotect {
            assert_violation(backend, &output, "no memory, or no mapping, for the page");
        } else {
            assert!(output.status.success(), "{}", crate::support::text(&output));
            assert!(crate::support::stdout(&output).contains("refused"));
        }
    }
}
