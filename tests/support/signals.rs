//! What tests of living with other handlers need: handlers as C programs install them, and foreign
//! faults.

use super::{file_of, page, store};
use lacuna::{Arena, Backend};
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A handler with SA_SIGINFO.
pub(crate) type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// The address that the last foreign fault should tell.
pub(crate) static SEEN: AtomicUsize = AtomicUsize::new(0);

/// An arena whose faults are SIGBUS.
pub(crate) fn arena() -> Arena {
    let builder = Arena::builder(1 << 36).backend(Backend::Userfaultfd);
    let arena = builder.reserve().unwrap();
    store(&arena, 0, 1);
    arena
}

/// Touches pages here and there, each of which raises a signal.
pub(crate) fn touch(arena: &Arena) {
    static NEXT: AtomicUsize = AtomicUsize::new(1 << 21);
    let faults = arena.stats().faults;
    for _ in 0..20 {
        store(arena, NEXT.fetch_add(2 << 20, Ordering::SeqCst), 1);
    }
    assert!(arena.stats().faults >= faults + 20, "the touches raised no signals");
}

/// Touches what lies behind the end of a file that is mapped.
pub(crate) fn touch_truncated_file() {
    let file = file_of(&vec![1; 2 * page()]);
    // SAFETY: a new mapping; it is read once, which is the point.
    unsafe {
        let map = libc::mmap(
            ptr::null_mut(),
            2 * page(),
            libc::PROT_READ,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        file.set_len(page() as u64).unwrap();
        SEEN.store(map.addr() + page() + 5, Ordering::SeqCst);
        map.cast::<u8>().add(page() + 5).read_volatile();
    }
}

/// Gives this thread an alternate stack of 64 KiB, for handlers on top of handlers.
pub(crate) fn large_alternate_stack() {
    const SIZE: usize = 64 << 10;
    let memory = Box::leak(vec![0u8; SIZE].into_boxed_slice());
    let stack = libc::stack_t { ss_sp: memory.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIZE };
    // SAFETY: the memory is never given back.
    assert_eq!(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, 0);
}

pub(crate) fn raise() {
    // SAFETY: raising a signal has no preconditions.
    assert_eq!(unsafe { libc::raise(libc::SIGBUS) }, 0);
}

/// The action of SIGBUS.
pub(crate) fn action() -> libc::sigaction {
    // SAFETY: zeroes are a valid sigaction.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut action), 0);
        action
    }
}

pub(crate) fn disposition() -> usize {
    action().sa_sigaction
}

/// Gives SIGBUS an action; returns the one before.
pub(crate) fn set_action(action: &libc::sigaction) -> libc::sigaction {
    // SAFETY: zeroes are a valid sigaction; the new one is valid.
    unsafe {
        let mut before: libc::sigaction = mem::zeroed();
        assert_eq!(libc::sigaction(libc::SIGBUS, action, &raw mut before), 0);
        before
    }
}

/// Installs a handler of SIGBUS as a C program would; returns the action before.
pub(crate) fn install(handler: usize, flags: libc::c_int) -> libc::sigaction {
    // SAFETY: zeroes are a valid sigaction.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    set_action(&action)
}

/// Calls the handler of an action with SA_SIGINFO, as one that chains does.
///
/// # Safety
/// The arguments are the kernel's.
pub(crate) unsafe fn chain(
    action: &libc::sigaction,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    assert_ne!(action.sa_flags & libc::SA_SIGINFO, 0);
    let handler = ptr::with_exposed_provenance::<()>(action.sa_sigaction);
    // SAFETY: a handler with SA_SIGINFO.
    unsafe { mem::transmute::<*const (), Handler>(handler)(signal, info, context) };
}

/// Ends the process: 42 if the fault is the one that was provoked.
pub(crate) extern "C" fn note(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; the process ends without running anything.
    unsafe {
        let address = (*info).si_addr().addr();
        libc::_exit(if address == SEEN.load(Ordering::SeqCst) { 42 } else { 43 });
    }
}

/// How a child ended: by which signal, or with which status.
pub(crate) fn ending(output: &Output) -> (Option<i32>, Option<i32>) {
    (output.status.signal(), output.status.code())
}
