//! What must not leak: descriptors into other programs, one arena's bytes into another; and what must
//! not be passed: the ends of an arena.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ArenaBuilder, Heap, SparseArray, Template, Window, page_size};
use proptest::prelude::*;
use std::alloc::GlobalAlloc;
use std::fs::File;
use std::ops::Range;
use std::process::Command;
use support::{assert_killed, discard, file_of, in_child, load, numbered_pages, stderr, store};

const CHUNK: usize = 2 << 20;
/// No template has this byte.
const CANARY: u8 = 0xc9;

#[test]
fn descriptors_do_not_pass_to_other_programs() {
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    store(&arena, 0, 1);
    arena.measure().unwrap();
    let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    let listing = String::from_utf8(output.stdout).unwrap();
    assert!(listing.contains(" -> "), "{listing}");
    assert!(!listing.contains("userfaultfd") && !listing.contains("pagemap"), "{listing}");
}

/// A userfaultfd that may handle the kernel's faults could hold up system calls.
#[test]
fn faults_of_the_kernel_are_not_ours_to_handle() {
    let arena = Arena::builder(1 << 30).window(Window::Pages(1)).reserve().unwrap();
    let error = support::read_into(&arena, 0, &[1]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
    assert_eq!(arena.stats().faults, 0);
}

fn kinds() -> [Template; 4] {
    [
        Template::zero(),
        Template::repeat(&0x11u8).unwrap(),
        Template::bytes(vec![0x22; CHUNK + 100]).unwrap(),
        numbered_pages(),
    ]
}

/// Reads all of a range and looks for the canary.
#[track_caller]
fn assert_clean(arena: &Arena, range: Range<usize>) {
    // SAFETY: the range is within the arena, and nobody writes to it.
    let bytes = unsafe { std::slice::from_raw_parts(arena.as_ptr().add(range.start), range.len()) };
    // Two in a row: the numbers of numbered pages may have the byte.
    let found = bytes.windows(8).step_by(8).position(|it| it == [CANARY; 8]);
    assert_eq!(found, None, "{arena:?}");
}

fn fill(arena: &Arena, len: usize) {
    // SAFETY: within the arena, which nobody else uses.
    unsafe { arena.as_ptr().write_bytes(CANARY, len) };
}

/// By streams, whose huge pages are made in staging slots; by populating; by reads, by lending.
fn assert_all_clean(builder: impl Fn() -> ArenaBuilder<'static>) {
    let len = 8 * CHUNK;
    let by_touching = builder().reserve().unwrap();
    assert_clean(&by_touching, 0..len);
    discard(&by_touching, 0..len);
    let by_populating = builder().reserve().unwrap();
    by_populating.populate(0..len).unwrap();
    assert_clean(&by_populating, 0..len);
    let by_writing = builder().reserve().unwrap();
    (0..len).step_by(page_size()).for_each(|byte| store(&by_writing, byte, 1));
    assert_clean(&by_writing, 0..len);
    let scattered = builder().reserve().unwrap();
    (0..len).step_by(37 * page_size()).for_each(|byte| store(&scattered, byte, 1));
    assert_clean(&scattered, 0..len);
}

#[test]
fn no_arena_shows_what_another_held() {
    for template in kinds() {
        for huge_pages in [true, false] {
            let builder = || {
                let builder = Arena::builder(8 * CHUNK).template(template.clone());
                builder.huge_pages(huge_pages)
            };
            let before = builder().reserve().unwrap();
            fill(&before, 8 * CHUNK);
            discard(&before, 0..4 * CHUNK);
            assert_clean(&before, 0..4 * CHUNK);
            fill(&before, 8 * CHUNK);
            drop(before);
            assert_all_clean(builder);
        }
    }
}

#[test]
fn what_is_kept_resident_is_overwritten() {
    for template in kinds() {
        let builder = Arena::builder(8 * CHUNK).template(template).keep_resident(5 * CHUNK + 4096);
        let arena = builder.reserve().unwrap();
        fill(&arena, 8 * CHUNK);
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.reset() }.unwrap();
        assert_clean(&arena, 0..8 * CHUNK);
    }
}

#[test]
fn zeroed_blocks_and_arenas_after_heaps_are_clean() {
    let heap = || Heap::new(Arena::builder(1 << 30).reserve().unwrap()).unwrap();
    let sizes = [24, 3000, 100_000, 5 << 20];
    let fill = |heap: &Heap, size: usize| {
        let layout = support::heap::layout(size);
        let block = support::heap::alloc(heap, layout);
        // SAFETY: the block is so large.
        unsafe { block.write_bytes(CANARY, size) };
        support::heap::free(heap, block, layout);
    };
    for again in [false, true] {
        let heap = heap();
        for size in sizes {
            (0..20).for_each(|_| fill(&heap, size));
            if again {
                heap.purge();
            }
            let layout = support::heap::layout(size);
            // SAFETY: the layout has a size; the block is read within it and freed once.
            unsafe {
                let block = heap.alloc_zeroed(layout);
                let bytes = std::slice::from_raw_parts(block, size);
                assert!(bytes.iter().all(|byte| *byte == 0), "{size}");
                heap.dealloc(block, layout);
            }
        }
    }
    assert_all_clean(|| Arena::builder(8 * CHUNK));
}

#[test]
fn the_ends_of_an_arena_are_guarded() {
    for (role, lens) in [("before", false), ("after", true)] {
        let output = in_child("the_ends_of_an_arena_are_guarded", role, || {
            let arena = Arena::builder(3 * CHUNK + page_size()).reserve().unwrap();
            arena.populate(0..arena.len()).unwrap();
            for round in 0..50 {
                store(&arena, (round * 7919 * page_size()) % arena.len(), 1);
                discard(&arena, 0..arena.len());
                drop(Arena::builder(round << 14 | 1).reserve().unwrap());
            }
            let byte = if lens {
                arena.as_ptr().wrapping_add(arena.len())
            } else {
                arena.as_ptr().wrapping_sub(1)
            };
            // SAFETY: none: the process dies here, which is what is tested.
            unsafe { byte.write_volatile(1) };
        });
        assert_killed(&output, libc::SIGSEGV);
    }
}

/// Numbers that sums and products overflow with.
fn extreme() -> impl Strategy<Value = usize> {
    let edges = [
        0,
        1,
        page_size() - 1,
        page_size(),
        CHUNK,
        1 << 30,
        1 << 47,
        isize::MAX as usize,
        usize::MAX,
    ];
    (prop::sample::select(edges.to_vec()), -5000isize..5000)
        .prop_map(|(edge, by)| edge.wrapping_add_signed(by))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// Each is done or refused, and nothing panics.
    #[test]
    fn extreme_lengths_are_refused(
        a in extreme(), b in extreme(), c in extreme(), d in extreme(), window: u32
    ) {
        let arena = Arena::builder(a).budget(b).limit(c).keep_resident(d);
        let _ = arena.window(Window::Pages(window)).reserve().map(|arena| arena.stats());
        let arena = Arena::builder(1 << 20).budget(1 << 20).reserve().unwrap();
        let _ = arena.populate(a..b);
        // SAFETY: nobody has a reference into the arena.
        let _ = unsafe { arena.discard(a..b) };
        let _ = arena.set_limit(c);
        let covering = arena.covering(a..b);
        prop_assert!(covering.start <= covering.end && covering.end <= arena.len());
        let _ = SparseArray::<[u8; 24]>::filled(a, [1; 24]).map(|array| array.len());
        let mut array = SparseArray::<u64>::filled(1000, 1).unwrap();
        let _ = (array.populate(a..b), array.discard(c..d));
        let file = file_of(&[1; 5000]);
        let template = Template::file_range(&file, a as u64..b as u64);
        let _ = template.map(|template| Arena::builder(c.min(1 << 40)).template(template).reserve());
    }
}

/// An arena of eight chunks of a file, and the file.
fn of_file(name: &str, huge_pages: bool) -> (Arena, File) {
    let file = file_of(&vec![7; 8 * CHUNK]);
    let builder = Arena::builder(8 * CHUNK).name(name).template(Template::file(&file).unwrap());
    (builder.huge_pages(huge_pages).keep_resident(8 * CHUNK).reserve().unwrap(), file)
}

#[test]
fn a_template_that_shrinks_is_a_violation_or_an_error() {
    for huge_pages in [true, false] {
        let role = if huge_pages { "huge" } else { "small" };
        let name = "a_template_that_shrinks_is_a_violation_or_an_error";
        let output = in_child(name, role, || {
            let (arena, file) = of_file("shrinks", huge_pages);
            (0..3 * CHUNK).step_by(page_size()).for_each(|byte| assert_eq!(load(&arena, byte), 7));
            file.set_len(CHUNK as u64).unwrap();
            // What is present stays; what is not can no longer be had.
            assert_eq!(load(&arena, 2 * CHUNK), 7);
            let error = arena.populate(5 * CHUNK..6 * CHUNK).unwrap_err();
            assert_eq!(error.kind(), lacuna::ErrorKind::TemplateUnreadable);
            // SAFETY: nobody has a reference into the arena.
            unsafe { arena.reset() }.unwrap();
            assert_eq!(load(&arena, 0), 7);
            load(&arena, 2 * CHUNK + 5);
        });
        assert_killed(&output, support::fault_signal());
        let want = format!(
            "lacuna: arena \"shrinks\": read at offset {}: its template cannot be read\n",
            2 * CHUNK + 5
        );
        assert_eq!(stderr(&output), want);
    }
}

#[test]
fn a_template_that_changes_shows_the_old_or_the_new() {
    use std::os::unix::fs::FileExt;
    for huge_pages in [true, false] {
        let (arena, file) = of_file("changes", huge_pages);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for chunk in 0..8 {
                    file.write_all_at(&vec![8; CHUNK], chunk * CHUNK as u64).unwrap();
                }
            });
            for byte in (0..8 * CHUNK).step_by(page_size()) {
                let found = load(&arena, byte);
                assert!(found == 7 || found == 8, "{found}");
            }
        });
        // SAFETY: nobody has a reference into the arena.
        unsafe { arena.reset() }.unwrap();
        (0..8 * CHUNK).step_by(page_size()).for_each(|byte| assert_eq!(load(&arena, byte), 8));
    }
}
