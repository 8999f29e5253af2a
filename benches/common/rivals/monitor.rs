//! userfaultfd as it is commonly used: the thread that touches sleeps, and another one resolves.

use super::Memory;
use crate::common::memory::{HUGE, Mapping};
use crate::common::page;
use crate::common::work::{Content, Work};
use lacuna::Errno;
use lacuna::uffd::{CopyMode, Event, PagefaultFlags, RegisterMode, Uffd, ZeropageMode};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

struct Monitored {
    mapping: Mapping,
    /// A page whose fault ends the thread.
    stop: Mapping,
    thread: Option<JoinHandle<()>>,
    faults: Arc<AtomicU64>,
}

/// What the thread knows.
struct Monitor {
    uffd: Uffd,
    base: usize,
    len: usize,
    block: usize,
    /// A huge page's worth of the content, all of it resident.
    content: Mapping,
    zero: bool,
    faults: Arc<AtomicU64>,
}

pub(super) fn memory(work: &Work, pages: usize) -> Box<dyn Memory> {
    let uffd = Uffd::builder().open().expect("userfaultfd is to be had");
    let (mapping, stop) = (Mapping::small_pages(work.len), Mapping::small_pages(page()));
    for mapping in [&mapping, &stop] {
        // SAFETY: the mappings are new, and used only while the thread runs.
        unsafe { uffd.register(mapping.base(), mapping.len(), RegisterMode::MISSING) }
            .expect("anonymous memory can be registered");
    }
    let mut content = Mapping::small_pages(HUGE);
    let value = match work.content {
        Content::Zero => 0,
        Content::Repeat(value) => value,
    };
    content.fill(value);
    let faults = Arc::new(AtomicU64::new(0));
    let monitor = Monitor {
        uffd,
        base: mapping.base().expose_provenance(),
        len: mapping.len(),
        block: pages * page(),
        content,
        zero: value == 0,
        faults: Arc::clone(&faults),
    };
    let thread = std::thread::spawn(move || monitor.run());
    Box::new(Monitored { mapping, stop, thread: Some(thread), faults })
}

impl Memory for Monitored {
    fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    fn faults(&self) -> Option<u64> {
        Some(self.faults.load(Ordering::Relaxed))
    }

    fn kind(&self) -> &'static str {
        "userfaultfd thread"
    }
}

impl Drop for Monitored {
    fn drop(&mut self) {
        // SAFETY: the page is this memory's own.
        unsafe { self.stop.base().read_volatile() };
        self.thread.take().map(JoinHandle::join);
    }
}

// SAFETY: the mapping of the content is moved to the thread and used there alone.
unsafe impl Send for Monitor {}

impl Monitor {
    fn run(self) {
        loop {
            match self.uffd.read_event() {
                Ok(Some(Event::Pagefault { address, flags, .. })) => {
                    let Some(offset) = self.offset(address) else {
                        return self.release(address);
                    };
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    self.resolve(offset, flags.contains(PagefaultFlags::WRITE));
                }
                other => panic!("expected a page fault, got {other:?}"),
            }
        }
    }

    fn offset(&self, address: usize) -> Option<usize> {
        address.checked_sub(self.base).filter(|offset| *offset < self.len)
    }

    /// Lets the last toucher go on.
    fn release(&self, address: usize) {
        let start = ptr::with_exposed_provenance_mut(address);
        // SAFETY: whoever touched the page wants any content.
        let progress = unsafe { self.uffd.zeropage(start, page(), ZeropageMode::empty()) };
        progress.into_result().expect("the page was missing");
    }

    /// Installs the block around `offset`, page by page where something is in the way.
    fn resolve(&self, offset: usize, write: bool) {
        let mut at = offset - offset % self.block;
        let end = (at + self.block).min(self.len);
        while at < end {
            let start = ptr::with_exposed_provenance_mut(self.base + at);
            // SAFETY: the pages are part of the memory, whose missing pages promise this content.
            let progress = unsafe {
                match self.zero && !write {
                    true => self.uffd.zeropage(start, end - at, ZeropageMode::empty()),
                    false => {
                        let content = self.content.base();
                        self.uffd.copy(start, content, end - at, CopyMode::empty())
                    }
                }
            };
            at += progress.bytes();
            match progress.errno() {
                None | Some(Errno::EAGAIN) => {}
                Some(Errno::EEXIST) => at += page(),
                Some(errno) => panic!("cannot install a page: {errno}"),
            }
        }
    }
}
