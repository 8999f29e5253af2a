//! Any sequence of what a program may do to an arena.

#![no_main]

#[path = "../../tests/support/arena_interpreter.rs"]
mod arena_interpreter;
mod common;
#[path = "../../tests/support/mod.rs"]
mod support;

use arena_interpreter::{Action, Content, PAGES, Setup, run};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

fn page(input: &mut Unstructured<'_>) -> Result<usize> {
    input.int_in_range(0..=PAGES - 1)
}

fn action(input: &mut Unstructured<'_>) -> Result<Action> {
    Ok(match input.int_in_range(0..=15u8)? {
        0..3 => Action::Write {
            page: page(input)?,
            at: input.arbitrary::<u16>()?.into(),
            value: input.arbitrary()?,
        },
        3..5 => Action::Read { page: page(input)? },
        5 => Action::Kernel { page: page(input)?, value: input.arbitrary()? },
        6..8 => Action::Populate { first: page(input)?, count: page(input)? },
        8..10 => Action::Discard { first: page(input)?, count: page(input)? },
        10..12 => {
            Action::Stream { first: page(input)?, count: page(input)?, value: input.arbitrary()? }
        }
        12 => Action::SetLimit { pages: page(input)? },
        13 => Action::Measure,
        _ => Action::Reset,
    })
}

fn setup(input: &mut Unstructured<'_>) -> Result<Setup> {
    let content = match input.int_in_range(0..=6u8)? {
        0..3 => Content::Zero,
        3 => Content::Repeat(input.arbitrary()?),
        4 => Content::Image {
            len: input.int_in_range(0..=PAGES * lacuna::page_size())?,
            file: input.arbitrary()?,
        },
        5 => Content::Shared { len: input.int_in_range(0..=PAGES * lacuna::page_size())? },
        _ => Content::Function,
    };
    Ok(Setup {
        content,
        pages: input.int_in_range(1..=PAGES)?,
        window: *input.choose(&support::WINDOWS)?,
        budget: if input.arbitrary()? { Some(page(input)? + 1) } else { None },
        limit: if input.arbitrary()? { page(input)? } else { PAGES },
        lending: input.arbitrary()?,
        huge_pages: input.arbitrary()?,
        keep: if input.arbitrary()? { page(input)? } else { 0 },
    })
}

fuzz_target!(init: common::report_violations(), |data: &[u8]| {
    let mut input = Unstructured::new(data);
    let Ok(setup) = setup(&mut input) else { return };
    common::tell(&setup);
    run(setup, common::actions(input, action));
});
