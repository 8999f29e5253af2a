//! What may become of a failure.

use crate::life::Phase;
use Outcome::{Error, Null, Unnoticed, Violation};
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

/// What may come of it when `call` fails with `errno`, for ever or once.
pub(crate) fn expected(phase: Phase, call: Call, errno: Errno, always: bool) -> Vec<Outcome> {
    match phase {
        Phase::Start => at_start(call, errno),
        Phase::Run => in_life(call, errno, always),
    }
}

/// Nothing is made by halves: it is an error, or there is another way.
fn at_start(call: Call, errno: Errno) -> Vec<Outcome> {
    match (call, errno) {
        // Kernels without huge pages do not know the advice about them.
        (Call::Advise, Errno::EINVAL) => vec![Unnoticed],
        // Kernels, and sandboxes, that do not know it.
        (Call::WipeOnFork, Errno::EINVAL) => vec![Unnoticed],
        // Kernels that do not know UFFD_USER_MODE_ONLY, and the device for who may have it.
        (Call::Userfaultfd, Errno::EINVAL | Errno::EPERM) => vec![Unnoticed, Error],
        // A kernel that cannot take note of writes, before 6.7: checkpoints have another way.
        (Call::Api, Errno::EINVAL) => vec![Unnoticed, Error],
        // Where it is denied, so is locking.
        (Call::Unlock, errno) if errno != Errno::ENOMEM => vec![Unnoticed],
        // Only asked whether there is such a thing.
        (Call::PopulateWrite, _) => vec![Unnoticed],
        // A reservation that cannot be unmapped stays.
        (Call::Unmap, _) => vec![Unnoticed],
        _ => vec![Error],
    }
}

fn in_life(call: Call, errno: Errno, always: bool) -> Vec<Outcome> {
    match (call, always) {
        // Huge pages, moving and merging save time or memory, and nothing depends on them.
        (Call::Move | Call::Remap | Call::Mincore | Call::Unmap, _) => vec![Unnoticed],
        // Freed blocks are not poisoned, or by another way.
        (Call::Guard | Call::Sigaction, _) => vec![Unnoticed],
        // Nothing else does, but what an image is saved from and brought up in.
        (Call::Advise | Call::Map | Call::Unlock, _) => vec![Unnoticed, Error],
        // An image is the old one, or there is none; where the file cannot be opened once more, it is used
        // as it is.
        (Call::OpenFile | Call::Duplicate, _) => vec![Unnoticed],
        (
            Call::ReadFile
            | Call::WriteFile
            | Call::SyncFile
            | Call::LockFile
            | Call::Stat
            | Call::OpenFlags
            | Call::MakeMemory
            | Call::CopyPages,
            _,
        ) => vec![Unnoticed, Error],
        // With userfaultfd only heaps use it, to put fresh memory where a block was: another way to save
        // mappings. Without, a touch cannot be answered.
        (Call::Protect, true) => vec![Unnoticed, Error, Violation],
        (Call::Copy | Call::Zeropage | Call::Continue | Call::WriteMemory, true) => vec![Violation],
        // It is tried again, or the method that met it says so.
        (
            Call::Copy | Call::Zeropage | Call::Continue | Call::WriteMemory | Call::Protect,
            false,
        ) => {
            vec![Unnoticed, Error, Violation]
        }
        // Blocks are not handed out without memory behind them; an old kernel has another way.
        (Call::PopulateWrite, true) if errno != Errno::EINVAL => vec![Null, Error],
        (Call::PopulateWrite | Call::PopulateRead, _) => vec![Unnoticed, Null, Error],
        // Address space that cannot be had back is not given out again.
        (Call::Unguard, _) => vec![Unnoticed, Null],
        // What was to be given back, or counted, is not.
        (Call::Discard, true) => vec![Error],
        (Call::Discard, false) => vec![Unnoticed, Error],
        // Before Linux 6.7.
        (Call::ScanPagemap, _) => vec![Unnoticed, Error],
        (Call::OpenPagemap | Call::ReadPagemap, _) => vec![Unnoticed, Error],
        // A chunk is not lent, or cannot be taken back.
        (Call::Unregister | Call::Register, _) => vec![Unnoticed, Error],
        _ => vec![],
    }
}
