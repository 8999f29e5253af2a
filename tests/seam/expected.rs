//! What may become of a failure.

use crate::life::Phase;
use lacuna::Errno;
use lacuna::seam::Call;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// Another way was taken, or it was tried again.
    Unnoticed,
    /// An `Err` that says which operation failed, and why.
    Error,
    /// An allocation was null.
    Null,
    /// The touch was a violation, with its line.
    Violation,
    /// A panic: a wrong byte, or a wrong count.
    Wrong,
    /// A death without a line.
    Crash,
}

/// What may come of it when `call` fails with `errno`.
pub(crate) fn expected(_phase: Phase, _call: Call, _errno: Errno, _always: bool) -> Vec<Outcome> {
    vec![Outcome::Unnoticed, Outcome::Error, Outcome::Null, Outcome::Violation]
}
