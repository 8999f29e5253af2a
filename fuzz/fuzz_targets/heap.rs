//! Any sequence of what a program may do to a heap.

#![no_main]

mod common;
#[path = "../../tests/support/heap_interpreter.rs"]
mod heap_interpreter;

use heap_interpreter::{Action, Setup, run};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;

/// Small sizes are as likely as large ones.
fn size(input: &mut Unstructured<'_>) -> Result<usize> {
    let most = *input.choose(&[200, 9_000, 140_000, 1_200_000, 9_000_000])?;
    input.int_in_range(1..=most)
}

fn action(input: &mut Unstructured<'_>) -> Result<Action> {
    Ok(match input.int_in_range(0..=15u8)? {
        0..7 => Action::Allocate {
            size: size(input)?,
            align: 1 << input.int_in_range(0..=23u8)?,
            zeroed: input.arbitrary()?,
            elsewhere: input.ratio(1u8, 8u8)?,
        },
        7..11 => {
            Action::Free { which: input.arbitrary::<u8>()?.into(), elsewhere: input.ratio(1, 8u8)? }
        }
        11..15 => Action::Resize { which: input.arbitrary::<u8>()?.into(), size: size(input)? },
        _ => Action::Purge,
    })
}

fn setup(input: &mut Unstructured<'_>) -> Result<Setup> {
    // Where room is short, more can go wrong.
    let reserve = match input.int_in_range(0..=3u8)? {
        0 => input.int_in_range(1..=4)?,
        1 => input.int_in_range(1..=40)?,
        _ => 1 << 15,
    };
    let budget = match input.int_in_range(0..=3u8)? {
        0 => Some(input.int_in_range(1..=1500)?),
        1 => Some(input.int_in_range(1..=6000)?),
        _ => None,
    };
    Ok(Setup { reserve, budget })
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let Ok(setup) = setup(&mut input) else { return };
    common::tell(&setup);
    run(setup, common::actions(input, action));
});
