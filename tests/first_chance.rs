//! `try_handle`, for hosts whose own handler stays in front.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::signals::{
    SEEN, arena, ending, install, large_alternate_stack, raise, touch, touch_truncated_file,
};
use support::{assert_killed, assert_success, in_child, load, stderr, store, text};

/// Calls of the hook, and those that it resolved.
static ASKED: AtomicUsize = AtomicUsize::new(0);
static RESOLVED: AtomicUsize = AtomicUsize::new(0);

const FLAGS: libc::c_int = libc::SA_SIGINFO | libc::SA_ONSTACK;

/// A host's handler with a first-chance hook, which ends the process for what is a crash.
extern "C" fn host(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    ASKED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the arguments are the kernel's; errno is this thread's; ending runs nothing.
    unsafe {
        *libc::__errno_location() = 77;
        let mask = blocked();
        if lacuna::try_handle(info, context) {
            assert_eq!(*libc::__errno_location(), 77);
            assert_eq!(blocked(), mask);
            RESOLVED.fetch_add(1, Ordering::SeqCst);
            return;
        }
        assert_eq!(*libc::__errno_location(), 77);
        let address = (*info).si_addr().addr();
        libc::_exit(if address == SEEN.load(Ordering::SeqCst) { 42 } else { 43 });
    }
}

/// The signals that the thread blocks, as a bit each.
fn blocked() -> u64 {
    // SAFETY: zeroes are a valid set; a set begins with the kernel's 64 bits.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut set);
        ptr::from_ref(&set).cast::<u64>().read()
    }
}

#[test]
fn a_host_asks_first() {
    assert_success(&in_child("a_host_asks_first", "ours", || {
        let arena = arena();
        install(host as *const () as usize, FLAGS);
        touch(&arena);
        assert!(RESOLVED.load(Ordering::SeqCst) >= 20);
        assert_eq!(ASKED.load(Ordering::SeqCst), RESOLVED.load(Ordering::SeqCst));
        assert!(!lacuna::is_in_front());
        assert_eq!(
            lacuna::check_thread().unwrap_err().kind(),
            lacuna::ErrorKind::Displaced,
            "all but that is well"
        );
    }));
    let output = in_child("a_host_asks_first", "foreign", || {
        let _arena = arena();
        install(host as *const () as usize, FLAGS);
        touch_truncated_file();
    });
    assert_eq!(ending(&output), (None, Some(42)), "{}", text(&output));
    let output = in_child("a_host_asks_first", "sent", || {
        let _arena = arena();
        install(host as *const () as usize, FLAGS);
        raise();
    });
    assert_eq!(ending(&output), (None, Some(43)), "{}", text(&output));
    // There may be no arena yet.
    let output = in_child("a_host_asks_first", "none", || {
        install(host as *const () as usize, FLAGS);
        touch_truncated_file();
    });
    assert_eq!(ending(&output), (None, Some(42)), "{}", text(&output));
}

#[test]
fn violations_end_as_they_do_without_a_host() {
    let line = "lacuna: arena \"a\": read at offset 4096 is past its limit of 4096 bytes\n";
    let output = in_child("violations_end_as_they_do_without_a_host", "limit", || {
        let builder = Arena::builder(1 << 30).backend(Backend::Userfaultfd);
        let arena = builder.name("a").limit(4096).reserve().unwrap();
        install(host as *const () as usize, FLAGS);
        load(&arena, 4096);
    });
    assert_killed(&output, libc::SIGBUS);
    assert_eq!(stderr(&output), line);
}

#[test]
fn signals_that_are_none_of_ours_are_refused() {
    let _arena = arena();
    // SAFETY: zeroes are a valid siginfo and context; for another signal nothing is read of them.
    unsafe {
        let mut info: libc::siginfo_t = mem::zeroed();
        let mut context: libc::ucontext_t = mem::zeroed();
        for signal in [0, libc::SIGUSR1, libc::SIGSEGV, libc::SIGBUS] {
            info.si_signo = signal;
            assert!(!lacuna::try_handle(&raw mut info, (&raw mut context).cast()));
        }
    }
}

/// The host's handler blocks nothing; a timer's touches the same chunks as the interrupted thread.
#[test]
fn handlers_on_top_of_the_hosts_do_not_wait_for_it() {
    static AT: AtomicUsize = AtomicUsize::new(0);
    static TICKS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn tick(_: libc::c_int) {
        let ahead = TICKS.fetch_add(1, Ordering::Relaxed) % 7 * 3 * 4096;
        let address = AT.load(Ordering::Relaxed) + ahead;
        // SAFETY: the address lies in an arena that lives.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    }
    let name = "handlers_on_top_of_the_hosts_do_not_wait_for_it";
    assert_success(&in_child(name, "timer", || {
        let arena = arena();
        // Three signals may be on top of each other, a frame of several KiB each.
        large_alternate_stack();
        install(host as *const () as usize, FLAGS | libc::SA_NODEFER);
        let base = arena.as_ptr().expose_provenance();
        AT.store(base, Ordering::Relaxed);
        // SAFETY: zeroes are a valid sigaction and timer; the handler writes to an arena.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = tick as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut());
            let every = libc::timeval { tv_sec: 0, tv_usec: 150 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()), 0);
        }
        for _ in 0..2 {
            for offset in (0..128 << 20).step_by(4096) {
                AT.store(base + offset, Ordering::Relaxed);
                store(&arena, offset, 1);
            }
            support::discard(&arena, 0..256 << 20);
        }
        assert!(TICKS.load(Ordering::Relaxed) > 50, "the timer did not fire");
        // SAFETY: ends the process without running anything; the timer goes on until then.
        unsafe { libc::_exit(0) };
    }));
}
