//! The classic: inaccessible memory, and a SIGSEGV handler that opens the touched pages with
//! mprotect(2). One memory at a time; lacuna's SIGBUS handler is not disturbed.

use super::Memory;
use crate::common::memory::{HUGE, Mapping};
use crate::common::page;
use crate::common::work::{Content, Work};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// The memory that the handler serves.
static BASE: AtomicUsize = AtomicUsize::new(0);
static LEN: AtomicUsize = AtomicUsize::new(0);
/// Bytes it opens at once.
static BLOCK: AtomicUsize = AtomicUsize::new(0);
/// What it copies there; null for zeroes.
static TEMPLATE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static FAULTS: AtomicU64 = AtomicU64::new(0);

struct Guarded {
    mapping: Mapping,
    _template: Option<Mapping>,
}

pub(super) fn memory(work: &Work, pages: usize) -> Box<dyn Memory> {
    // Over lacuna's, which takes the front when its turn comes: each is called by the kernel.
    install();
    let mapping = Mapping::new(work.len, libc::PROT_NONE, libc::MADV_NOHUGEPAGE);
    let template = match work.content {
        Content::Zero => None,
        Content::Repeat(value) => {
            let mut template = Mapping::small_pages(HUGE);
            template.fill(value);
            Some(template)
        }
    };
    BASE.store(mapping.base().expose_provenance(), Ordering::Relaxed);
    LEN.store(mapping.len(), Ordering::Relaxed);
    BLOCK.store(pages * page(), Ordering::Relaxed);
    TEMPLATE.store(template.as_ref().map_or(ptr::null_mut(), Mapping::base), Ordering::Relaxed);
    FAULTS.store(0, Ordering::Relaxed);
    Box::new(Guarded { mapping, _template: template })
}

impl Memory for Guarded {
    fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    fn faults(&self) -> Option<u64> {
        Some(FAULTS.load(Ordering::Relaxed))
    }

    fn kind(&self) -> &'static str {
        "SIGSEGV + mprotect"
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        LEN.store(0, Ordering::Relaxed);
    }
}

fn install() {
    // SAFETY: the handler does nothing but system calls and copies; zeroes are a valid sigaction.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        assert_eq!(libc::sigaction(libc::SIGSEGV, &raw const action, ptr::null_mut()), 0);
    }
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
    // SAFETY: the kernel calls this with a valid siginfo of a fault.
    let address = unsafe { (*info).si_addr() }.addr();
    if !open(address) {
        // SAFETY: the instruction faults again and meets the default: the process ends.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// Opens the block that `address` lies in; false if it is not ours.
fn open(address: usize) -> bool {
    let (base, len) = (BASE.load(Ordering::Relaxed), LEN.load(Ordering::Relaxed));
    let block = BLOCK.load(Ordering::Relaxed);
    let Some(offset) = address.checked_sub(base).filter(|offset| *offset < len) else {
        return false;
    };
    let offset = offset - offset % block;
    let (start, size) =
        (ptr::with_exposed_provenance_mut::<u8>(base + offset), block.min(len - offset));
    let template = TEMPLATE.load(Ordering::Relaxed);
    FAULTS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the block lies in the memory, which nobody has touched there; the template is larger.
    unsafe {
        if libc::mprotect(start.cast(), size, libc::PROT_READ | libc::PROT_WRITE) != 0 {
            return false;
        }
        if !template.is_null() {
            ptr::copy_nonoverlapping(template, start, size);
        }
    }
    true
}
