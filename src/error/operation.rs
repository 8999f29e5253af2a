//! What was being done when it failed.

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
    pub(super) fn name(self) -> &'static str {
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
