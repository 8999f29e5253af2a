//! What targets share.
#![allow(dead_code, reason = "every target uses a part of this module")]

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::fmt::Debug;
use std::sync::LazyLock;

/// Makes a violation a crash that libFuzzer keeps the input of: it catches SIGABRT, but the SIGBUS
/// that a violation ends with reaches nobody.
pub(crate) fn report_violations() {
    // SAFETY: abort(3) is async-signal-safe, and does not return.
    unsafe { lacuna::set_violation_hook(Some(|_| libc::abort())) };
}

/// Whether to tell what is done, which is how a crash becomes a test.
static TELL: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_TELL").is_some());

pub(crate) fn tell(what: &dyn Debug) {
    if *TELL {
        eprintln!("{what:?}");
    }
}

/// What `decode` makes of the input, until that ends.
pub(crate) fn actions<T: Debug>(
    mut input: Unstructured<'_>,
    decode: impl Fn(&mut Unstructured<'_>) -> Result<T>,
) -> impl Iterator<Item = T> {
    let next = move || if input.is_empty() { None } else { decode(&mut input).ok() };
    std::iter::from_fn(next).inspect(|action| tell(action))
}
