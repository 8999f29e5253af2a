//! Mappings, of which a process may have `vm.max_map_count`, all of them used up by somebody else.

use crate::support::{Watchdog, discard, load, numbered_pages, store};
use crate::{MIB, World, assert_error, assert_success_or_violation, builder, children, on_both};
use lacuna::{Arena, Backend, Errno, Operation, page_size};
use std::ptr;

/// Mappings that somebody else has.
struct Others {
    start: *mut libc::c_void,
    len: usize,
}

impl Others {
    /// Takes all that are left.
    fn take_all() -> Self {
        let most = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let most: usize = most.trim().parse().unwrap();
        let (page, flags) = (page_size(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let len = 2 * page * (most + 10);
        // SAFETY: a new mapping, every other page of which becomes a mapping of its own.
        unsafe {
            let start = libc::mmap(ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let mut pages = (0..).map(|it| start.byte_add((2 * it + 1) * page));
            while libc::mprotect(pages.next().unwrap(), page, libc::PROT_READ) == 0 {}
            // The last one, at the end of what is left.
            libc::mmap(ptr::null_mut(), page, libc::PROT_READ, flags | libc::MAP_SHARED, -1, 0);
            Self { start, len }
        }
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        // SAFETY: mapped by `take_all`, and nobody's.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

#[test]
fn an_arena_without_mappings_is_an_error() {
    on_both("mappings::an_arena_without_mappings_is_an_error", |backend| {
        let make = || builder(backend, 1 << 30).template(numbered_pages()).reserve();
        drop(make().unwrap());
        let others = Others::take_all();
        for _ in 0..10 {
            let error = make().unwrap_err();
            assert_eq!(error.errno(), Some(Errno::ENOMEM), "{error}");
            assert!(error.hint().is_some_and(|it| it.contains("vm.max_map_count")), "{error}");
        }
        drop(others);
        assert_eq!(load(&make().unwrap(), 5 * page_size() + 2), 5);
    });
}

/// What needs no mapping more goes on: with userfaultfd all faults; without, those beside what is there.
#[test]
fn arenas_go_on_without_mappings() {
    on_both("mappings::arenas_go_on_without_mappings", |backend| {
        let _watchdog = Watchdog::new("without mappings", 50);
        let world = World::new(backend, 256 * MIB);
        world.touch(0);
        world.allocate();
        let others = Others::take_all();
        if backend == Backend::Userfaultfd {
            world.touch(48 * MIB);
        }
        (0..100).for_each(|it| world.touch_page(8 * MIB + it * page_size()));
        // Null where moving takes a mapping, or a block.
        assert!(world.allocate() >= 3);
        [&world.zero, &world.numbered, &world.repeated].into_iter().for_each(discard_some);
        drop(others);
        for arena in [&world.zero, &world.numbered, &world.repeated] {
            discard(arena, 0..256 * MIB);
        }
        world.assert_exact();
        world.touch(0);
        world.touch(96 * MIB);
        assert_eq!(world.allocate(), 5);
        world.assert_exact();
    });
}

/// Discards parts of what is there, which succeeds or is an error with a hint; and what is left is right.
fn discard_some(arena: &Arena) {
    let mut refused = 0;
    for start in (0..8 * MIB).step_by(MIB) {
        // SAFETY: nobody has a reference into the arena.
        if let Err(error) = unsafe { arena.discard(start + 8192..start + 65536) } {
            assert_error(&error, Operation::Discard, Errno::ENOMEM, "vm.max_map_count");
            refused += 1;
        }
    }
    // With userfaultfd nothing is split by that.
    assert!(refused == 0 || arena.backend() == Backend::Mprotect, "{refused} were refused");
    for start in (0..8 * MIB).step_by(MIB) {
        assert_eq!(load(arena, start + 1), 7);
        let seen = load(arena, start + 8192 + 1);
        let stays = refused > 0 && seen == 7;
        assert!(stays || seen == fresh(arena), "{seen} at {start}");
    }
}

/// What the second byte of an untouched page of a [`World`]'s is: low bits of a page's number are not
/// there.
fn fresh(arena: &Arena) -> u8 {
    load(arena, arena.len() - page_size() + 1)
}

/// Touches far from everything that is there.
#[test]
fn lonely_touches_without_mappings_resolve_or_are_violations() {
    let name = "mappings::lonely_touches_without_mappings_resolve_or_are_violations";
    for (backend, output) in children(name, |backend| {
        let world = World::new(backend, 1 << 30);
        let others = Others::take_all();
        for chunk in 0..100 {
            world.touch_page((chunk * 2 + 1) * 2 * MIB + 50 * page_size());
        }
        drop(others);
        world.assert_exact();
    }) {
        assert_success_or_violation(backend, &output, "no memory, or no mapping, for the page");
        // There is a way out with userfaultfd, which needs no mapping.
        assert!(backend == Backend::Mprotect || output.status.success());
    }
}

/// Lent chunks split mappings: what was lent before can still be taken back.
#[test]
fn lent_chunks_are_taken_back_without_mappings() {
    on_both("mappings::lent_chunks_are_taken_back_without_mappings", |backend| {
        let arena = builder(backend, 1 << 30).reserve().unwrap();
        let touch = |chunk: usize| {
            for page in 0..8 {
                store(&arena, chunk * 2 * MIB + (3 + 40 * page) * page_size(), 9);
            }
        };
        (0..20).step_by(2).for_each(touch);
        let lent = arena.stats().lent_bytes;
        assert!(lent > 10 * MIB);
        let others = Others::take_all();
        discard(&arena, 0..20 * MIB);
        if backend == Backend::Userfaultfd {
            // Taking chunks back has left mappings, which are lent again, until there is none.
            (0..60).step_by(2).for_each(touch);
        }
        drop(others);
        discard(&arena, 0..1 << 30);
        assert_eq!(arena.measure().unwrap().resident_bytes, 0);
        (0..20).step_by(2).for_each(touch);
        for chunk in (0..20).step_by(2) {
            assert_eq!(load(&arena, chunk * 2 * MIB + 43 * page_size()), 9);
            assert_eq!(load(&arena, chunk * 2 * MIB + 44 * page_size()), 0);
        }
    });
}
