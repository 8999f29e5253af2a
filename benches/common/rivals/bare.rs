//! The least that resolving a fault by a signal can cost: a handler that does one UFFDIO_COPY of one
//! page and nothing else. It is no way of getting memory (one memory at a time, no bound, no other
//! faults, no fork), but what a page-sized lacuna can be compared with.

use super::Memory;
use crate::common::memory::Mapping;
use crate::common::page;
use crate::common::work::{Content, Work};
use lacuna::uffd::{CopyMode, Features, RegisterMode, Uffd};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// What the handler knows.
static UFFD: AtomicPtr<Uffd> = AtomicPtr::new(ptr::null_mut());
static PAGE: AtomicUsize = AtomicUsize::new(0);
static CONTENT: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static FAULTS: AtomicU64 = AtomicU64::new(0);

struct Bare {
    mapping: Mapping,
    _uffd: Box<Uffd>,
    _content: Mapping,
    /// The disposition of SIGBUS while this memory is not in use: lacuna's.
    before: Option<libc::sigaction>,
}

pub(super) fn memory(work: &Work) -> Box<dyn Memory> {
    let uffd = Uffd::builder().features(Features::SIGBUS).open().expect("userfaultfd is to be had");
    let uffd = Box::new(uffd);
    let mapping = Mapping::small_pages(work.len);
    // SAFETY: the mapping is new, and used only while the handler is in place.
    unsafe { uffd.register(mapping.base(), mapping.len(), RegisterMode::MISSING) }
        .expect("anonymous memory can be registered");
    let mut content = Mapping::small_pages(page());
    content.fill(match work.content {
        Content::Zero => 0,
        Content::Repeat(value) => value,
    });
    UFFD.store(ptr::from_ref(&*uffd).cast_mut(), Ordering::Relaxed);
    CONTENT.store(content.base(), Ordering::Relaxed);
    PAGE.store(page(), Ordering::Relaxed);
    FAULTS.store(0, Ordering::Relaxed);
    Box::new(Bare { mapping, _uffd: uffd, _content: content, before: None })
}

impl Memory for Bare {
    fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    fn prepare(&mut self) {
        // SAFETY: the handler does one system call; zeroes are a valid sigaction.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            let mut before: libc::sigaction = std::mem::zeroed();
            assert_eq!(libc::sigaction(libc::SIGBUS, &raw const action, &raw mut before), 0);
            self.before = Some(before);
        }
    }

    fn faults(&self) -> Option<u64> {
        Some(FAULTS.load(Ordering::Relaxed))
    }

    fn kind(&self) -> &'static str {
        "a bare SIGBUS handler"
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: the disposition was in force before.
            unsafe { libc::sigaction(libc::SIGBUS, before, ptr::null_mut()) };
        }
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel calls this with a valid siginfo of a fault.
    let address = unsafe { (*info).si_addr() }.addr();
    let page = PAGE.load(Ordering::Relaxed);
    let target = ptr::with_exposed_provenance_mut(address & !(page - 1));
    // SAFETY: the descriptor and the page of content live while this handler is in place; the page
    // that faults is missing, and of the memory.
    let copied = unsafe {
        let uffd = &*UFFD.load(Ordering::Relaxed);
        uffd.copy(target, CONTENT.load(Ordering::Relaxed), page, CopyMode::DONTWAKE)
    };
    FAULTS.fetch_add(1, Ordering::Relaxed);
    if copied.errno().is_some() {
        // SAFETY: the instruction faults again and meets the default: the process ends.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
