//! What the user can do about it.

use super::{Error, ErrorKind, Operation};
use nix::errno::Errno;

impl Error {
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
                "a page that is present cannot be read: somebody else has poisoned it, or changed \
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
                "checkpoints, templates that arenas share, and huge pages or shared memory exclude each \
                 other, as do huge pages and saved images"
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
