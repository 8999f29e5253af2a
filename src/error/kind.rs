//! Why it failed.

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A system call failed; [`Error::errno`](crate::Error::errno) says how.
    Os,
    /// A length of zero was given where something must have a size.
    ZeroLength,
    /// The length does not fit the address space.
    TooLong,
    /// A byte offset or address is not a multiple of the page size.
    Unaligned,
    /// A range starts after its end, or reaches past the end of the arena or file.
    OutOfBounds,
    /// The template is longer than the arena.
    TemplateTooLong,
    /// The template could not be read: its file shrank or its device failed.
    TemplateUnreadable,
    /// Only an image, from bytes or a file, can be shared.
    NotShareable,
    /// All instances of the pool are in use.
    PoolExhausted,
    /// A budget must allow at least one page.
    BudgetTooSmall,
    /// The budget has no room for what was asked.
    BudgetExhausted,
    /// The limit lies past the end of the reservation.
    LimitPastLength,
    /// The range reaches past the limit.
    LimitExceeded,
    /// Part of the range is poisoned.
    Poisoned,
    /// The two ranges overlap.
    Overlap,
    /// A name must fit 63 bytes.
    NameTooLong,
    /// A window must be at least one page.
    WindowTooSmall,
    /// The element type has no size.
    ZeroSized,
    /// The element type's alignment is larger than arenas are aligned to (2 MiB).
    Overaligned,
    /// The kernel lacks a feature that is needed.
    Unsupported,
    /// A feature that makes no sense with the others that were asked for.
    Conflict,
    /// A heap needs at least 2 MiB.
    TooShort,
    /// Blocks of a heap start as zeroes, so its arena's template must be zero.
    TemplateNotZero,
    /// A process may have 64 heaps.
    TooManyHeaps,
    /// The pool of huge pages (hugetlbfs, of 2 MiB) has none left, and may make none.
    NoHugePages,
    /// What was asked for needs userfaultfd, which is denied here or was not chosen
    /// ([`Backend`](crate::Backend)).
    NeedsUserfaultfd,
    /// The file is no memory: neither a memfd, nor on tmpfs or hugetlbfs.
    NotMemory,
    /// The file is shorter than the arena that it was to be the memory of.
    MemoryTooShort,
    /// The file's pages are not of the size that was asked for, or of one that arenas can have.
    PageSizeMismatch,
    /// Heaps, sparse arrays and [`OnFork::Wipe`](crate::OnFork::Wipe) need memory of this process's
    /// own, and the arena's is shared.
    NotPrivate,
    /// A heap needs an arena of base pages.
    NotBasePages,
    /// `LACUNA_BACKEND` names no backend.
    UnknownBackend,
    /// A dozen different handlers have been found in place of lacuna's.
    TooManyHandlers,
    /// The thread blocks a signal that faults raise.
    SignalBlocked,
    /// Somebody has installed a handler over lacuna's, or reset or ignored its signal.
    Displaced,
    /// The thread's alternate signal stack, of this many bytes, is too small.
    AlternateStackTooSmall,
    /// The thread's alternate signal stack lies in an arena.
    AlternateStackInArena,
    /// The thread runs on a stack in an arena, and has no alternate signal stack.
    NoAlternateStack,
    /// A heap needs an arena that forked children inherit
    /// ([`OnFork::Inherit`](crate::OnFork::Inherit)).
    MustBeInherited,
    /// This is a forked child, which must not touch the arena
    /// ([`OnFork::Forbid`](crate::OnFork::Forbid)).
    NotInherited,
    /// This process was forked without the C library's fork hooks, by a raw clone(2): arenas do not
    /// work in it. See [`Arena`](crate::Arena).
    ForkedWithoutHooks,
    /// This process is a forked child that could not open a userfaultfd of its own, or one of its
    /// children: arenas do not work in it.
    NotRearmed,
    /// There is no checkpoint to come back to: none was made, it was forgotten, or this is a forked
    /// child, which has none of its parent's.
    NoCheckpoint,
    /// First touches of the arena are being recorded already.
    AlreadyRecording,
    /// First touches of the arena are not being recorded.
    NotRecording,
    /// It is no trace, or not a whole one, or one that was changed.
    TraceDamaged,
    /// The trace was saved by a version of lacuna whose traces this one does not know.
    TraceVersion,
    /// The trace was recorded on a system with another page size.
    PageSizeDiffers,
    /// The file does not begin with an image.
    NotAnImage,
    /// The image has been changed, or cut short, by somebody else than [`Arena::save`](crate::Arena::save).
    ImageDamaged,
    /// The image is of a version that this version of lacuna does not know.
    ImageVersion,
    /// The image was saved on a machine with another page size, or another order of bytes.
    ImageOfOtherMachine,
    /// Somebody else is saving to the file.
    ImageBusy,
    /// The template's value is too long for an image, which holds up to 2048 bytes of it.
    FillTooLong,
    /// What a page function makes of untouched pages cannot be saved.
    TemplateIsFunction,
}

impl ErrorKind {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Os => "the system call failed",
            Self::ZeroLength => "the length is zero",
            Self::TooLong => "the length does not fit the address space",
            Self::Unaligned => "not a multiple of the page size",
            Self::OutOfBounds => "the range is out of bounds",
            Self::TemplateTooLong => "the template is longer than the arena",
            Self::TemplateUnreadable => "the template cannot be read",
            Self::NotShareable => "only images can be shared",
            Self::PoolExhausted => "all instances of the pool are in use",
            Self::BudgetTooSmall => "the budget is smaller than one page",
            Self::BudgetExhausted => "the budget is exhausted",
            Self::LimitPastLength => "the limit lies past the end of the reservation",
            Self::LimitExceeded => "the range reaches past the limit",
            Self::Poisoned => "part of the range is poisoned",
            Self::Overlap => "the ranges overlap",
            Self::NameTooLong => "the name is longer than 63 bytes",
            Self::WindowTooSmall => "a window is at least one page",
            Self::ZeroSized => "the element type has no size",
            Self::Overaligned => "the element type is aligned to more than 2 MiB",
            Self::Unsupported => "the kernel lacks a feature that is needed",
            Self::Conflict => "the features exclude each other",
            Self::TooShort => "a heap needs at least 2 MiB",
            Self::TemplateNotZero => "a heap needs an arena whose template is zero",
            Self::TooManyHeaps => "a process may have 64 heaps",
            Self::NoHugePages => "no huge page is left in the system's pool",
            Self::NeedsUserfaultfd => {
                "this needs userfaultfd, which is denied here or was not chosen"
            }
            Self::NotMemory => "the file is neither a memfd, nor on tmpfs or hugetlbfs",
            Self::MemoryTooShort => "the file is shorter than the arena",
            Self::PageSizeMismatch => "the file's pages are of another size",
            Self::NotPrivate => {
                "heaps, sparse arrays and OnFork::Wipe need memory that is not shared"
            }
            Self::NotBasePages => "a heap needs an arena of base pages",
            Self::UnknownBackend => "LACUNA_BACKEND is neither `userfaultfd` nor `mprotect`",
            Self::TooManyHandlers => "too many handlers have been found in its place",
            Self::SignalBlocked => "the signal that faults raise is blocked",
            Self::Displaced => "lacuna's handler has been displaced",
            Self::AlternateStackTooSmall => "the alternate signal stack is too small",
            Self::AlternateStackInArena => "the alternate signal stack lies in an arena",
            Self::NoAlternateStack => "its stack lies in an arena, and there is no alternate one",
            Self::MustBeInherited => "a heap needs an arena that forked children inherit",
            Self::NotInherited => "a forked child must not touch this arena",
            Self::ForkedWithoutHooks => {
                "this process was forked without the C library's fork hooks (raw clone), so arenas \
                 do not work in it"
            }
            Self::NotRearmed => {
                "this forked process could not open a userfaultfd, so arenas do not work in it"
            }
            Self::NoCheckpoint => "there is no checkpoint",
            Self::AlreadyRecording => "it is being recorded already",
            Self::NotRecording => "it is not being recorded",
            Self::TraceDamaged => "it is no trace, or a damaged one",
            Self::TraceVersion => "the trace is of an unknown version",
            Self::PageSizeDiffers => "the trace was recorded with another page size",
            Self::NotAnImage => "the file is no image of an arena",
            Self::ImageDamaged => "the image is damaged or cut short",
            Self::ImageVersion => "the image is of an unknown version",
            Self::ImageOfOtherMachine => "the image has another page size or byte order",
            Self::ImageBusy => "somebody else is saving to the file",
            Self::FillTooLong => "an image holds a repeated value of at most 2048 bytes",
            Self::TemplateIsFunction => "an image cannot hold a page function",
        }
    }
}
