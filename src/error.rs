//! The one error type: which operation failed, on what, why, and what can be done about it.

use core::fmt;
use nix::errno::Errno;

/// What lacuna was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// userfaultfd(2), or opening `/dev/userfaultfd` and its `USERFAULTFD_IOC_NEW`.
    Open,
    /// `UFFDIO_API`, the handshake that enables features.
    Api,
    /// `UFFDIO_REGISTER`.
    Register,
    /// `UFFDIO_UNREGISTER`.
    Unregister,
    /// `UFFDIO_COPY`.
    Copy,
    /// `UFFDIO_ZEROPAGE`.
    Zeropage,
    /// `UFFDIO_WAKE`.
    Wake,
    /// `UFFDIO_WRITEPROTECT`.
    WriteProtect,
    /// `UFFDIO_CONTINUE`.
    Continue,
    /// `UFFDIO_POISON`.
    Poison,
    /// `UFFDIO_MOVE`.
    Move,
    /// read(2) of an event from a userfaultfd.
    ReadEvent,
    /// Opening `/proc/self/mem`, or writing through it.
    OpenMemory,
    /// mmap(2) or mprotect(2).
    Map,
    /// madvise(2).
    Advise,
    /// Installing a signal handler, or [`take_front`](crate::take_front).
    InstallHandler,
    /// [`check_thread`](crate::check_thread).
    CheckThread,
    /// Installing the hooks that keep arenas working in forked children.
    InstallForkHooks,
    /// Making a [`Heap`](crate::Heap).
    Heap,
    /// Making a template.
    Template,
    /// Making, or mapping, memory that other processes map as well.
    ShareMemory,
    /// [`ArenaBuilder::reserve`](crate::ArenaBuilder::reserve).
    Reserve,
    /// [`Arena::populate`](crate::Arena::populate).
    Populate,
    /// [`Arena::discard`](crate::Arena::discard) or [`Arena::reset`](crate::Arena::reset).
    Discard,
    /// [`Arena::poison`](crate::Arena::poison) or [`Arena::unpoison`](crate::Arena::unpoison).
    PoisonRange,
    /// [`Arena::move_pages`](crate::Arena::move_pages).
    MovePages,
    /// [`Arena::set_limit`](crate::Arena::set_limit).
    SetLimit,
    /// [`Arena::measure`](crate::Arena::measure).
    Measure,
    /// [`Arena::save`](crate::Arena::save).
    Save,
    /// [`ImageInfo::read`](crate::ImageInfo::read) or [`ImageInfo::verify`](crate::ImageInfo::verify).
    ReadImage,
    /// Making a [`SparseArray`](crate::SparseArray).
    Array,
    /// [`Arena::checkpoint`](crate::Arena::checkpoint).
    Checkpoint,
    /// [`Arena::written`](crate::Arena::written).
    Written,
    /// [`Arena::rollback`](crate::Arena::rollback).
    Rollback,
    /// Making a [`Pool`](crate::Pool).
    Pool,
    /// [`Pool::acquire`](crate::Pool::acquire).
    Acquire,
    /// [`Arena::start_recording`](crate::Arena::start_recording) or
    /// [`Arena::stop_recording`](crate::Arena::stop_recording).
    Record,
    /// [`Arena::replay`](crate::Arena::replay).
    Replay,
    /// [`Trace::load`](crate::Trace::load).
    LoadTrace,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "open a userfaultfd",
            Self::Api => "UFFDIO_API",
            Self::Register => "UFFDIO_REGISTER",
            Self::Unregister => "UFFDIO_UNREGISTER",
            Self::Copy => "UFFDIO_COPY",
            Self::Zeropage => "UFFDIO_ZEROPAGE",
            Self::Wake => "UFFDIO_WAKE",
            Self::WriteProtect => "UFFDIO_WRITEPROTECT",
            Self::Continue => "UFFDIO_CONTINUE",
            Self::Poison => "UFFDIO_POISON",
            Self::Move => "UFFDIO_MOVE",
            Self::ReadEvent => "read a userfaultfd event",
            Self::OpenMemory => "write through /proc/self/mem",
            Self::Map => "map memory",
            Self::Advise => "madvise",
            Self::InstallHandler => "install the signal handler",
            Self::CheckThread => "check the thread",
            Self::InstallForkHooks => "install the fork hooks",
            Self::Heap => "make a heap",
            Self::Template => "make a template",
            Self::ShareMemory => "share memory",
            Self::Reserve => "reserve an arena",
            Self::Populate => "populate",
            Self::Discard => "discard",
            Self::PoisonRange => "poison",
            Self::MovePages => "move pages",
            Self::SetLimit => "set the limit",
            Self::Measure => "measure",
            Self::Save => "save an arena",
            Self::ReadImage => "read an image",
            Self::Array => "make a sparse array",
            Self::Checkpoint => "make a checkpoint",
            Self::Written => "ask what was written",
            Self::Rollback => "roll back",
            Self::Pool => "make a pool",
            Self::Acquire => "acquire an instance",
            Self::Record => "record first touches",
            Self::Replay => "replay a trace",
            Self::LoadTrace => "load a trace",
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A system call failed; [`Error::errno`] says how.
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
    fn text(self) -> &'static str {
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

impl ErrorKind {
    /// What to do about the causes that have one remedy, whatever was the operation.
    fn hint(self) -> Option<&'static str> {
        Some(match self {
            Self::SignalBlocked => {
                "a fault would kill the process: leave SIGBUS (and SIGSEGV) out of the thread's \
                 signal mask, see pthread_sigmask(3)"
            }
            Self::Displaced => {
                "lacuna::take_front puts it in front again; it may stay there if the handler in \
                 front calls the one it found, or lacuna::try_handle"
            }
            Self::AlternateStackTooSmall => {
                "give sigaltstack(2) as much as getauxval(AT_MINSIGSTKSZ) says and 8 KiB more"
            }
            Self::AlternateStackInArena | Self::NoAlternateStack => {
                "give the thread an alternate stack of ordinary memory, see sigaltstack(2)"
            }
            Self::NeedsUserfaultfd => {
                "allow userfaultfd(2), in the seccomp profile of a container say, and ask for \
                 Backend::Userfaultfd; Arena::backend tells which one an arena has"
            }
            Self::NoCheckpoint => {
                "make one with Arena::checkpoint; a forked child has none of its parent's"
            }
            Self::NotShareable => {
                "make the template with Template::bytes or Template::file; arenas share zeroes anyway"
            }
            Self::PoolExhausted => "release an instance, or let the pool have more of them",
            Self::NoHugePages => {
                "have some set aside (echo N > /proc/sys/vm/nr_hugepages) or made when they are needed \
                 (vm.nr_overcommit_hugepages)"
            }
            Self::MemoryTooShort => "make it longer, see ftruncate(2)",
            Self::Poisoned => "Arena::unpoison lifts the poison",
            Self::TooManyHandlers => "somebody installs new handlers over and over",
            Self::TraceDamaged | Self::TraceVersion | Self::PageSizeDiffers => {
                "record a new one, and go on without until then"
            }
            Self::ImageDamaged => "go back to a copy, or save to another file",
            Self::ImageVersion => "it was saved by a newer version of lacuna",
            Self::ImageOfOtherMachine => "it can be used on machines like the one that saved it",
            Self::ImageBusy => "try again once that is done, or save to a file of one's own",
            Self::FillTooLong | Self::TemplateIsFunction => {
                "give the arena a template of bytes, or populate it and copy what is there"
            }
            _ => return None,
        })
    }
}

/// What an operation failed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    #[default]
    Nothing,
    /// A number, of bytes mostly.
    Value(usize),
    /// Bits of a feature word.
    Bits(u64),
    /// Byte addresses or byte offsets.
    Range { start: usize, end: usize },
    /// A thing with a name.
    Named(&'static str),
}

/// A failed operation of lacuna.
///
/// It is `Copy`, never allocates, and names the operation, what it worked on, the cause and, for
/// the causes that a user can do something about, what that is.
///
/// ```
/// let error = lacuna::Arena::builder(0).reserve().unwrap_err();
/// assert_eq!(error.kind(), lacuna::ErrorKind::ZeroLength);
/// assert_eq!(error.to_string(), "reserve an arena (0): the length is zero");
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    operation: Operation,
    kind: ErrorKind,
    errno: Option<Errno>,
    subject: Subject,
}

/// What fallible operations of lacuna return.
pub type Result<T, E = Error> = core::result::Result<T, E>;

impl Error {
    pub(crate) const fn new(operation: Operation, kind: ErrorKind) -> Self {
        Self { operation, kind, errno: None, subject: Subject::Nothing }
    }

    pub(crate) const fn os(operation: Operation, errno: Errno) -> Self {
        Self { operation, kind: ErrorKind::Os, errno: Some(errno), subject: Subject::Nothing }
    }

    pub(crate) const fn value(mut self, value: usize) -> Self {
        self.subject = Subject::Value(value);
        self
    }

    pub(crate) const fn bits(mut self, bits: u64) -> Self {
        self.subject = Subject::Bits(bits);
        self
    }

    pub(crate) const fn range(mut self, start: usize, end: usize) -> Self {
        self.subject = Subject::Range { start, end };
        self
    }

    pub(crate) const fn named(mut self, name: &'static str) -> Self {
        self.subject = Subject::Named(name);
        self
    }

    /// The operation that failed.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// Why it failed.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error number of the system call that failed, if one did.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        self.errno
    }

    /// What the user can do about it, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        Some(match (self.operation, self.kind, self.errno) {
            (Operation::Open, _, Some(Errno::EPERM | Errno::EACCES)) => {
                "userfaultfd is denied: allow the system call in the seccomp profile \
                 (container runtimes deny it by default), or set vm.unprivileged_userfaultfd=1, \
                 or grant access to /dev/userfaultfd; or use Backend::Mprotect"
            }
            (Operation::Open, _, Some(Errno::ENOSYS)) => {
                "this kernel or sandbox has no userfaultfd (CONFIG_USERFAULTFD); \
                 use Backend::Mprotect"
            }
            (_, _, Some(Errno::EMFILE)) => "no descriptor is left: raise RLIMIT_NOFILE (ulimit -n)",
            (_, _, Some(Errno::ENFILE)) => "the system has no descriptor left: raise fs.file-max",
            (Operation::OpenMemory, _, _) => {
                "without userfaultfd, templates other than zero need /proc mounted and \
                 /proc/self/mem writable (proc_mem.force_override=always)"
            }
            (Operation::Map, _, Some(Errno::ENOMEM)) => {
                "the address space, RLIMIT_AS, RLIMIT_DATA, vm.max_map_count or \
                 vm.overcommit_memory=2 does not allow this reservation; RLIMIT_DATA and \
                 overcommit_memory count all of it, but for Backend::Mprotect only what is touched"
            }
            (Operation::Map, _, Some(Errno::EAGAIN)) => {
                "the process locks its memory (mlockall(2), MCL_FUTURE): raise RLIMIT_MEMLOCK \
                 (ulimit -l) above the reservation, which is not locked once it is there"
            }
            (
                Operation::Discard | Operation::PoisonRange | Operation::MovePages,
                _,
                Some(Errno::EINVAL),
            ) => "part of the range is locked in memory (mlock(2)): munlock(2) it before",
            (
                Operation::Register
                | Operation::Unregister
                | Operation::Advise
                | Operation::Reserve
                | Operation::Populate
                | Operation::Discard
                | Operation::PoisonRange
                | Operation::MovePages
                | Operation::SetLimit
                | Operation::Checkpoint
                | Operation::Rollback
                | Operation::Record
                | Operation::Replay,
                _,
                Some(Errno::ENOMEM),
            ) => {
                "the kernel has no memory left, or the process no mappings: raise vm.max_map_count"
            }
            (
                Operation::Populate | Operation::Rollback | Operation::MovePages,
                ErrorKind::BudgetExhausted,
                _,
            ) => "raise the budget or discard what is no longer needed",
            (Operation::Save, _, Some(Errno::EBADF)) => {
                "open the file for reading and writing, and not for appending"
            }
            (Operation::Save, _, Some(Errno::EFAULT)) => {
                "a page that is present cannot be read: it is poisoned, or somebody else has changed \
                 its mapping"
            }
            (
                Operation::Save,
                _,
                Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG | Errno::EIO),
            ) => {
                "the image that the file had is still there, unless it is the end of the save that \
                 failed: then it is that one or the new one"
            }
            (Operation::Save, ErrorKind::NotAnImage, _) => {
                "to write over what is there, truncate the file before"
            }
            (Operation::Api, ErrorKind::Unsupported, _) => {
                "the kernel does not offer these features; Uffd::probe tells which it does"
            }
            (Operation::Api, _, Some(Errno::EPERM)) => "EVENT_FORK needs CAP_SYS_PTRACE",
            (Operation::Checkpoint, ErrorKind::Unsupported, _) => {
                "checkpoints need a kernel with userfaultfd's write protection (Linux 5.7; not on every \
                 machine), and Tracking::Kernel needs Linux 6.7: leave the tracking to the default"
            }
            (_, ErrorKind::Unsupported, _) => {
                "arenas need Linux 5.14 or later with userfaultfd's SIGBUS mode"
            }
            (_, ErrorKind::ForkedWithoutHooks, _) => "use fork(3), or posix_spawn(3), or call exec",
            (_, ErrorKind::NotRearmed, _) => {
                "before it forks, the parent needs a free descriptor (ulimit -n) and userfaultfd \
                 allowed"
            }
            (Operation::Checkpoint | Operation::Reserve, ErrorKind::Conflict, _) => {
                "checkpoints, and templates that arenas share, need private memory of base pages, and \
                 exclude each other"
            }
            (Operation::Save, ErrorKind::Conflict, _) => {
                "arenas of private base pages can be saved"
            }
            (Operation::PoisonRange, ErrorKind::Conflict, _) => "forget the checkpoint before",
            (Operation::MovePages, ErrorKind::Conflict, _) => {
                "pages are moved between arenas of private base pages, without a checkpoint or a shared \
                 template"
            }
            (_, ErrorKind::Conflict, _) => {
                "in SIGBUS mode no events are queued, so EVENT_* features would never be read and \
                 would make fork, mremap and madvise wait for ever"
            }
            (_, kind, _) => return kind.hint(),
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation.name())?;
        match self.subject {
            Subject::Nothing => {}
            Subject::Value(value) => write!(f, " ({value})")?,
            Subject::Bits(bits) => write!(f, " ({bits:#x})")?,
            Subject::Named(name) => write!(f, " ({name})")?,
            Subject::Range { start, end } => write!(f, " ({start:#x}..{end:#x})")?,
        }
        match (self.kind, self.errno) {
            (ErrorKind::Os, Some(errno)) => write!(f, ": {} ({errno:?})", errno.desc())?,
            (kind, Some(errno)) => write!(f, ": {} ({errno:?})", kind.text())?,
            (kind, None) => write!(f, ": {}", kind.text())?,
        }
        match self.hint() {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl core::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match (error.kind, error.errno) {
            (_, Some(errno)) => Self::from_raw_os_error(errno as i32).kind(),
            (ErrorKind::BudgetExhausted | ErrorKind::NoHugePages, None) => Io::OutOfMemory,
            (ErrorKind::PoolExhausted, None) => Io::WouldBlock,
            (
                ErrorKind::Unsupported
                | ErrorKind::NeedsUserfaultfd
                | ErrorKind::ForkedWithoutHooks
                | ErrorKind::NotRearmed,
                None,
            ) => Io::Unsupported,
            (ErrorKind::NotInherited, None) => Io::PermissionDenied,
            (ErrorKind::TraceDamaged | ErrorKind::TraceVersion, None) => Io::InvalidData,
            _ => Io::InvalidInput,
        };
        Self::new(kind, error)
    }
}
