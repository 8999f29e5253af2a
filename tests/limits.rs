//! What happens at the limits of the system, on both backends: an `Err` with a hint, null from a heap, or
//! a violation with its line; never a hang, and never a wrong byte.
//!
//! | file | limit |
//! |---|---|
//! | `space.rs` | `RLIMIT_AS`, `RLIMIT_DATA` |
//! | `descriptors.rs` | `RLIMIT_NOFILE` |
//! | `locked.rs` | mlock(2), mlockall(2), `RLIMIT_MEMLOCK` |
//! | `mappings.rs` | `vm.max_map_count` |
//!
//! Each case is a process of its own, since the limits are the process's.

#![allow(missing_docs, reason = "a test")]

#[path = "limits/descriptors.rs"]
mod descriptors;
#[path = "limits/locked.rs"]
mod locked;
#[path = "limits/mappings.rs"]
mod mappings;
#[path = "limits/space.rs"]
mod space;
mod support;

use lacuna::{Arena, ArenaBuilder, Backend, Errno, Error, Heap, Operation, Template, page_size};
use std::alloc::{GlobalAlloc, Layout};
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use support::{assert_killed, assert_success, in_child, load, numbered_pages, stderr, store, text};

pub(crate) const MIB: usize = 1 << 20;

/// A resource of setrlimit(2), whose type differs between C libraries.
pub(crate) type Resource = libc::__rlimit_resource_t;

/// The children of a case, one for each backend, each of which ended well.
pub(crate) fn on_both(name: &str, body: impl Fn(Backend)) {
    for (_, output) in children(name, body) {
        assert_success(&output);
    }
}

/// The children of a case, each of which a violation ended that says `why`.
pub(crate) fn violation_on_both(name: &str, why: &str, body: impl Fn(Backend)) {
    for (backend, output) in children(name, body) {
        assert_violation(backend, &output, why);
    }
}

/// The children of a case, one for each backend.
pub(crate) fn children(name: &str, body: impl Fn(Backend)) -> Vec<(Backend, Output)> {
    [Backend::Userfaultfd, Backend::Mprotect]
        .into_iter()
        .map(|backend| (backend, in_child(name, &backend.to_string(), || body(backend))))
        .collect()
}

#[track_caller]
pub(crate) fn assert_violation(backend: Backend, output: &Output, why: &str) {
    let signal = if backend == Backend::Mprotect { libc::SIGSEGV } else { libc::SIGBUS };
    assert_killed(output, signal);
    let said = stderr(output);
    assert!(said.starts_with("lacuna: arena ") && said.contains(why), "{}", text(output));
}

/// Either of the two ways in which a touch may end.
#[track_caller]
pub(crate) fn assert_success_or_violation(backend: Backend, output: &Output, why: &str) {
    match output.status.signal() {
        None => assert_success(output),
        Some(_) => assert_violation(backend, output, why),
    }
}

#[track_caller]
pub(crate) fn assert_error(error: &Error, operation: Operation, errno: Errno, hint: &str) {
    assert_eq!((error.operation(), error.errno()), (operation, Some(errno)), "{error}");
    assert!(error.hint().is_some_and(|it| it.contains(hint)), "no word of {hint}: {error}");
}

/// Sets a limit of this process, which can be raised again; tells the one before.
pub(crate) fn set_limit(resource: Resource, value: u64) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: valid limits of this process alone.
    unsafe {
        assert_eq!(libc::getrlimit(resource, &raw mut limit), 0);
        let new = libc::rlimit { rlim_cur: value.min(limit.rlim_max), ..limit };
        assert_eq!(libc::setrlimit(resource, &raw const new), 0);
    }
    limit.rlim_cur
}

/// A number in kB of `/proc/self/status`, in bytes.
pub(crate) fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

pub(crate) fn builder(backend: Backend, len: usize) -> ArenaBuilder<'static> {
    Arena::builder(len).backend(backend)
}

/// An arena of each kind of template and a heap, made before a limit is met.
pub(crate) struct World {
    pub(crate) zero: Arena,
    pub(crate) numbered: Arena,
    pub(crate) repeated: Arena,
    pub(crate) heap: Heap,
}

impl World {
    pub(crate) fn new(backend: Backend, len: usize) -> Self {
        let builder = || builder(backend, len);
        Self {
            zero: builder().reserve().unwrap(),
            numbered: builder().template(numbered_pages()).reserve().unwrap(),
            repeated: builder().template(Template::repeat(&0x33u8).unwrap()).reserve().unwrap(),
            heap: Heap::new(builder().reserve().unwrap()).unwrap(),
        }
    }

    /// Touches 8 MiB from `start` on one after another, and pages here and there in the 32 MiB after
    /// those; whatever is seen is right. Allocates nothing, so that it works at every limit.
    pub(crate) fn touch(&self, start: usize) {
        let pages = |count: usize, step: usize| (0..count).map(move |it| it * step * page_size());
        let stream = pages(8 * MIB / page_size(), 1).map(|offset| start + offset);
        let scattered = pages(100, 81).map(|offset| start + 8 * MIB + offset);
        for offset in stream.chain(scattered) {
            self.touch_page(offset);
        }
    }

    pub(crate) fn touch_page(&self, offset: usize) {
        let index = offset / page_size();
        assert_eq!((load(&self.zero, offset), load(&self.repeated, offset)), (0, 0x33));
        let number = (0..6)
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(load(&self.numbered, offset + 2 + byte)));
        assert_eq!(number, index);
        for arena in [&self.zero, &self.repeated, &self.numbered] {
            store(arena, offset + 1, 7);
            assert_eq!(load(arena, offset + 1), 7);
        }
    }

    /// Blocks of all kinds, each of which is right or null; tells how many are not null.
    pub(crate) fn allocate(&self) -> usize {
        let sizes = [16, 5000, 100_000, 3 * MIB, 9 * MIB];
        sizes.into_iter().filter(|size| self.allocate_one(*size)).count()
    }

    fn allocate_one(&self, size: usize) -> bool {
        let layout = Layout::from_size_align(size, 8).unwrap();
        // SAFETY: each block is so long, and freed with its layout.
        unsafe {
            let mut block = self.heap.alloc_zeroed(layout);
            if block.is_null() {
                return false;
            }
            assert_eq!((block.read(), block.add(size - 1).read()), (0, 0));
            block.add(size - 1).write(9);
            let mut len = size;
            let grown = self.heap.realloc(block, layout, 2 * size);
            if !grown.is_null() {
                (block, len) = (grown, 2 * size);
            }
            assert_eq!(block.add(size - 1).read(), 9);
            self.heap.dealloc(block, Layout::from_size_align(len, 8).unwrap());
        }
        true
    }

    /// Asserts that the counters say what the kernel does.
    pub(crate) fn assert_exact(&self) {
        for arena in [&self.zero, &self.numbered, &self.repeated] {
            let stats = arena.measure().unwrap();
            assert_eq!(stats.resident_bytes, support::arena_rss(arena));
        }
    }
}
