//! Builders of arenas, with any values whatever: each gives an error that is right, or an arena that
//! honours what it was asked. Then the same with the arguments of an arena's methods, with a heap in
//! its place, and with sparse arrays.

#![no_main]

#[path = "../../tests/support/arena_interpreter.rs"]
#[allow(dead_code, reason = "only the templates are used here")]
mod arena_interpreter;
mod common;
mod request;
#[path = "../../tests/support/mod.rs"]
mod support;
mod things;

use lacuna::{Arena, Error, ErrorKind, page_size};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use request::{Request, number, small};
use std::ops::Range;
use support::{load, store};

/// The most that a method is asked to make present at once.
const PRESENT: usize = 8 << 20;

/// Nobody may rely on what errors say, but saying it must work.
fn say(error: Error) -> ErrorKind {
    assert!(!error.to_string().is_empty() && !format!("{error:?}").is_empty());
    assert_eq!(std::io::Error::from(error).to_string(), error.to_string());
    error.kind()
}

/// Whether a byte may be touched without a violation.
fn may_touch(arena: &Arena, offset: usize) -> bool {
    offset < arena.limit() && arena.stats().budget_left() != Some(0)
        || arena.populated().any(|run| run.contains(&offset))
}

fn check_budget(arena: &Arena) {
    let stats = arena.stats();
    let charged = stats.resident_bytes + stats.lent_bytes;
    assert!(stats.budget_bytes.is_none_or(|budget| charged <= budget), "{stats}");
    assert!(!format!("{arena:?} {stats}").is_empty());
}

/// Touches the ends of what may be touched, and a place between.
fn touch(arena: &Arena, request: &Request, input: &mut Unstructured<'_>) -> Result<()> {
    let limit = arena.limit();
    let between = number(input)? % arena.len();
    for offset in [0, limit.wrapping_sub(1), arena.len() - 1, between, between ^ 1] {
        if offset < arena.len() && may_touch(arena, offset) {
            assert_eq!(load(arena, offset), request.content.byte(offset), "{offset}, {request:?}");
            check_budget(arena);
        }
    }
    if may_touch(arena, between) {
        store(arena, between, 1);
        assert_eq!(load(arena, between), 1);
        check_budget(arena);
    }
    Ok(())
}

/// What is wrong with a range for the methods that want whole pages of the arena.
fn wrong(arena: &Arena, range: &Range<usize>) -> Option<ErrorKind> {
    let aligned = |at: usize| at.is_multiple_of(page_size());
    match range {
        range if range.start > range.end || range.end > arena.len() => Some(ErrorKind::OutOfBounds),
        range if !aligned(range.start) || !aligned(range.end) => Some(ErrorKind::Unaligned),
        _ => None,
    }
}

fn call_methods(arena: &Arena, input: &mut Unstructured<'_>) -> Result<()> {
    let covering = |arena: &Arena, range: Range<usize>| {
        let covered = arena.covering(range.clone());
        assert!(covered.start <= covered.end);
        assert_eq!(wrong(arena, &covered), None);
        let end = range.end.min(arena.len());
        assert!(range.start >= end || (covered.start <= range.start && end <= covered.end));
        covered
    };
    while !input.is_empty() {
        let start = number(input)?;
        let len = if input.arbitrary()? { small(input)? } else { number(input)? };
        let mut range = start..start.wrapping_add(len);
        if input.arbitrary()? {
            range = covering(arena, range);
        }
        match input.int_in_range(0..=3u8)? {
            0 => populate(arena, range),
            1 => discard(arena, range),
            2 => set_limit(arena, start),
            _ => {
                arena.measure().unwrap();
                // SAFETY: nobody has a reference into the arena.
                unsafe { arena.reset() }.unwrap();
            }
        }
        check_budget(arena);
    }
    Ok(())
}

fn populate(arena: &Arena, range: Range<usize>) {
    let wrong = wrong(arena, &range);
    if wrong.is_none() && range.len() > PRESENT && range.end <= arena.limit() {
        return;
    }
    match arena.populate(range.clone()).map_err(say) {
        Ok(()) => assert!(wrong.is_none() && (range.end <= arena.limit())),
        Err(ErrorKind::LimitExceeded) => assert!(range.end > arena.limit()),
        Err(ErrorKind::BudgetExhausted) => assert_eq!(arena.stats().budget_left(), Some(0)),
        Err(kind) => assert_eq!(Some(kind), wrong),
    }
}

fn discard(arena: &Arena, range: Range<usize>) {
    // SAFETY: nobody has a reference into the arena.
    let result = unsafe { arena.discard(range.clone()) };
    assert_eq!(result.map_err(say).err(), wrong(arena, &range));
}

fn set_limit(arena: &Arena, bytes: usize) {
    let before = arena.limit();
    match arena.set_limit(bytes).map_err(say) {
        Ok(()) => assert_eq!(arena.limit(), bytes.next_multiple_of(page_size())),
        Err(kind) => {
            assert_eq!(kind, ErrorKind::LimitPastLength);
            assert!(bytes > arena.len() && arena.limit() == before);
        }
    }
}

fn run(input: &mut Unstructured<'_>) -> Result<()> {
    let request = Request::arbitrary(input)?;
    common::tell(&request);
    match input.int_in_range(0..=9u8)? {
        0 => return things::templates(input),
        1 => return things::array::<[u8; 3]>(&request, [1, 2, 3], input),
        2 => return things::array::<u64>(&request, 1 << 63 | 1, input),
        3 => return things::array::<[u8; 5000]>(&request, [7; 5000], input),
        _ => {}
    }
    let arena = match request.builder().reserve() {
        Err(error) => {
            let kind = say(error);
            assert!(request.explains(&error), "{kind:?}, {request:?}");
            return Ok(());
        }
        Ok(arena) => arena,
    };
    request.check(&arena);
    if input.arbitrary()? {
        touch(&arena, &request, input)?;
    }
    if input.arbitrary()? {
        return things::heap(arena, &request, input);
    }
    call_methods(&arena, input)
}

fuzz_target!(init: common::report_violations(), |data: &[u8]| {
    // What the input does not say any more is not done.
    let _ = run(&mut Unstructured::new(data));
});
