//! Bad input: each gets an error that says what was wrong, and nothing else happens.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Error, ErrorKind, Operation, SparseArray, Template, Window, page_size};
use std::fs::File;
use support::{file_of, load};

/// Asserts what an error says.
#[track_caller]
fn says<T>(result: lacuna::Result<T>, operation: Operation, kind: ErrorKind, text: &str) {
    let error: Error = result.err().expect("bad input was taken");
    assert_eq!((error.operation(), error.kind()), (operation, kind), "{error}");
    assert_eq!(error.to_string(), text);
    let error = std::io::Error::from(error);
    assert_eq!(error.to_string(), text);
}

#[test]
fn lengths() {
    use ErrorKind::{TooLong, ZeroLength};
    let zero = "reserve an arena (0): the length is zero";
    says(Arena::builder(0).reserve(), Operation::Reserve, ZeroLength, zero);
    for len in [usize::MAX, isize::MAX as usize, usize::MAX - (4 << 20)] {
        let text = format!("reserve an arena ({len}): the length does not fit the address space");
        says(Arena::builder(len).reserve(), Operation::Reserve, TooLong, &text);
    }
    // Fits a usize, but not the address space that the processor has.
    let error = Arena::builder(1 << 60).reserve().unwrap_err();
    assert_eq!((error.operation(), error.kind()), (Operation::Map, ErrorKind::Os));
    assert!(error.to_string().contains("address space"), "{error}");
}

#[test]
fn settings() {
    let arena = || Arena::builder(1 << 20);
    let reserve = Operation::Reserve;
    says(
        arena().budget(page_size() - 1).reserve(),
        reserve,
        ErrorKind::BudgetTooSmall,
        &format!("reserve an arena ({}): the budget is smaller than one page", page_size() - 1),
    );
    says(
        arena().limit((1 << 20) + 1).reserve(),
        reserve,
        ErrorKind::LimitPastLength,
        "reserve an arena (1048577): the limit lies past the end of the reservation",
    );
    says(
        arena().limit(usize::MAX).reserve(),
        reserve,
        ErrorKind::LimitPastLength,
        &format!(
            "reserve an arena ({}): the limit lies past the end of the reservation",
            usize::MAX
        ),
    );
    says(
        arena().name(&"n".repeat(64)).reserve(),
        reserve,
        ErrorKind::NameTooLong,
        "reserve an arena (64): the name is longer than 63 bytes",
    );
    says(
        arena().window(Window::Pages(0)).reserve(),
        reserve,
        ErrorKind::WindowTooSmall,
        "reserve an arena (0): a window is at least one page",
    );
    says(
        arena().template(Template::bytes(vec![1; (1 << 20) + 1]).unwrap()).reserve(),
        reserve,
        ErrorKind::TemplateTooLong,
        "reserve an arena (1048577): the template is longer than the arena",
    );
}

#[test]
fn limits_of_an_arena() {
    let arena = Arena::builder(1 << 20).limit(4096).reserve().unwrap();
    says(
        arena.set_limit((1 << 20) + 1),
        Operation::SetLimit,
        ErrorKind::LimitPastLength,
        "set the limit (1048577): the limit lies past the end of the reservation",
    );
    assert_eq!(arena.limit(), 4096);
    says(
        arena.populate(0..1 << 20),
        Operation::Populate,
        ErrorKind::LimitExceeded,
        "populate (0x0..0x100000): the range reaches past the limit",
    );
}

#[test]
fn ranges() {
    let arena = Arena::builder(1 << 20).reserve().unwrap();
    let page = page_size();
    for (range, kind, text) in [
        (0..page + 1, ErrorKind::Unaligned, "not a multiple of the page size"),
        (1..page, ErrorKind::Unaligned, "not a multiple of the page size"),
        (0..(1 << 20) + page, ErrorKind::OutOfBounds, "the range is out of bounds"),
        (2 * page..page, ErrorKind::OutOfBounds, "the range is out of bounds"),
        (usize::MAX - 1..usize::MAX, ErrorKind::OutOfBounds, "the range is out of bounds"),
    ] {
        let at = format!("({:#x}..{:#x}): {text}", range.start, range.end);
        let populated = arena.populate(range.clone());
        says(populated, Operation::Populate, kind, &format!("populate {at}"));
        // SAFETY: nobody has a reference into the arena.
        let discarded = unsafe { arena.discard(range) };
        says(discarded, Operation::Discard, kind, &format!("discard {at}"));
    }
    assert_eq!(arena.stats().resident_bytes, 0);
}

#[test]
fn budgets_that_are_full() {
    let arena = Arena::builder(1 << 20).budget(4 * page_size()).reserve().unwrap();
    says(
        arena.populate(0..5 * page_size()),
        Operation::Populate,
        ErrorKind::BudgetExhausted,
        &format!(
            "populate (0x0..{:#x}): the budget is exhausted; raise the budget or discard what is no \
             longer needed",
            5 * page_size()
        ),
    );
    // What was populated stays, and works.
    assert_eq!(arena.stats().resident_bytes, 4 * page_size());
    assert_eq!(load(&arena, 0), 0);
}

#[test]
fn templates() {
    use ErrorKind::{OutOfBounds, TemplateUnreadable, ZeroSized};
    let template = Operation::Template;
    says(
        Template::repeat(&()),
        template,
        ZeroSized,
        "make a template: the element type has no size",
    );
    let file = file_of(&[1; 100]);
    says(
        Template::file_range(&file, 0..101),
        template,
        OutOfBounds,
        "make a template (0x0..0x65): the range is out of bounds",
    );
    #[expect(clippy::reversed_empty_ranges, reason = "the point")]
    let reversed = 3..2;
    assert_eq!(Template::file_range(&file, reversed).unwrap_err().kind(), OutOfBounds);
    for path in ["/", "/dev/zero"] {
        says(
            Template::file(&File::open(path).unwrap()),
            template,
            TemplateUnreadable,
            "make a template: the template cannot be read",
        );
    }
    let path = std::env::temp_dir().join(format!("lacuna-bad-input-{}", std::process::id()));
    std::fs::write(&path, vec![1; 2 * page_size()]).unwrap();
    let write_only = File::options().write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let error = Template::file(&write_only).unwrap_err();
    assert_eq!(error.errno(), Some(lacuna::Errno::EACCES), "{error}");
}

#[test]
fn arrays() {
    #[repr(align(4194304))]
    struct Aligned(#[expect(dead_code, reason = "only the type matters")] u8);
    // SAFETY: zero is a valid u8.
    unsafe impl bytemuck::Zeroable for Aligned {}
    use ErrorKind::{Overaligned, TooLong, ZeroLength, ZeroSized};
    let array = Operation::Array;
    let text = "make a sparse array (0): the length is zero";
    says(SparseArray::<u32>::zeroed(0), array, ZeroLength, text);
    let text = format!(
        "make a sparse array ({}): the length does not fit the address space",
        usize::MAX / 2
    );
    says(SparseArray::<u32>::filled(usize::MAX / 2, 1), array, TooLong, &text);
    let text = "make a sparse array (8): the element type has no size";
    says(SparseArray::<()>::filled(8, ()), array, ZeroSized, text);
    let overaligned = move || {
        let text = "make a sparse array (8): the element type is aligned to more than 2 MiB";
        says(SparseArray::<Aligned>::zeroed(8), array, Overaligned, text);
    };
    // Such a value is 4 MiB large, and lies on the stack a few times.
    let thread = std::thread::Builder::new().stack_size(1 << 30).spawn(overaligned).unwrap();
    thread.join().unwrap();
    let mut array = SparseArray::<u32>::zeroed(8).unwrap();
    assert_eq!(array.discard(0..9).unwrap_err().kind(), ErrorKind::OutOfBounds);
    assert_eq!(array.populate(0..9).unwrap_err().kind(), ErrorKind::OutOfBounds);
}
