//! Faults inside signal handlers that know nothing of lacuna.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Template};
use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::{assert_success, in_child, page, store};

/// Times that a handler of the test has run.
static RAN: AtomicUsize = AtomicUsize::new(0);

#[test]
fn faults_inside_other_handlers_are_resolved() {
    static ADDRESS: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn touch(_: libc::c_int) {
        let address = ADDRESS.fetch_add(5 * 4096, Ordering::SeqCst);
        // SAFETY: the address lies in an arena that lives.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    }
    let arena = support::signals::arena();
    ADDRESS.store(arena.as_ptr().expose_provenance() + (1 << 21), Ordering::SeqCst);
    // SAFETY: zeroes are a valid sigaction; the handler writes to an arena.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        action.sa_sigaction = touch as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
        (0..50).for_each(|_| assert_eq!(libc::raise(libc::SIGUSR1), 0));
    }
    assert!(arena.stats().faults >= 1);
}

/// A timer's handler touches the chunk that the interrupted thread is filling, discarding or lending.
#[test]
fn handlers_that_touch_what_is_being_filled_do_not_wait_for_themselves() {
    static BASE: AtomicUsize = AtomicUsize::new(0);
    /// Where the interrupted thread is.
    static AT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn touch(_: libc::c_int) {
        let ahead = RAN.fetch_add(1, Ordering::Relaxed) % 7 * 3 * 4096;
        let address = BASE.load(Ordering::Relaxed) + AT.load(Ordering::Relaxed) + ahead;
        // SAFETY: the address lies in an arena that lives.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    }
    let name = "handlers_that_touch_what_is_being_filled_do_not_wait_for_themselves";
    assert_success(&in_child(name, "timer", || {
        let arena = Arena::builder(1 << 30).reserve().unwrap();
        BASE.store(arena.as_ptr().expose_provenance(), Ordering::Relaxed);
        // SAFETY: zeroes are a valid sigaction and timer; the handler writes to an arena.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = touch as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut());
            let every = libc::timeval { tv_sec: 0, tv_usec: 150 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            assert_eq!(libc::setitimer(libc::ITIMER_REAL, &raw const timer, ptr::null_mut()), 0);
        }
        for round in 0..3 {
            for offset in (0..256 << 20).step_by(page()) {
                AT.store(offset, Ordering::Relaxed);
                store(&arena, offset, 1);
            }
            if round == 1 {
                arena.populate(256 << 20..512 << 20).unwrap();
            }
            arena.measure().unwrap();
            support::discard(&arena, 0..512 << 20);
        }
        assert!(RAN.load(Ordering::Relaxed) > 100, "the timer did not fire");
        // The timer goes on until the process has ended, and `std::process::exit` would unmap the
        // alternate stack of the main thread, which it may interrupt.
        // SAFETY: ends the process without running anything.
        unsafe { libc::_exit(0) };
    }));
}

/// A page function is part of our handler, and may touch another arena: a signal within our handler
/// for another one. While it runs, a signal that somebody sends waits.
#[test]
fn a_fault_inside_our_own_handler_is_resolved() {
    static OTHER: AtomicUsize = AtomicUsize::new(0);
    static DEPTH: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn touch(_: libc::c_int) {
        assert_eq!(DEPTH.load(Ordering::SeqCst), 0, "a handler on top of ours");
        RAN.fetch_add(1, Ordering::SeqCst);
        let address =
            OTHER.load(Ordering::SeqCst) + (1 << 29) + RAN.load(Ordering::SeqCst) * 9 * 4096;
        // SAFETY: the address lies in an arena that lives.
        unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(1) };
    }
    fn generate(page_index: u64, page: &mut [u8]) {
        DEPTH.fetch_add(1, Ordering::SeqCst);
        let address = OTHER.load(Ordering::SeqCst) + page_index as usize * 3 * 4096;
        // SAFETY: the address lies in an arena that lives; raise has no preconditions.
        unsafe {
            ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(7);
            libc::raise(libc::SIGUSR1);
        }
        page.fill(page_index as u8);
        DEPTH.fetch_sub(1, Ordering::SeqCst);
    }
    let name = "a_fault_inside_our_own_handler_is_resolved";
    assert_success(&in_child(name, "nested", || {
        let other = Arena::builder(1 << 30).reserve().unwrap();
        OTHER.store(other.as_ptr().expose_provenance(), Ordering::SeqCst);
        // SAFETY: zeroes are a valid sigaction; the handler writes to an arena.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = touch as *const () as usize;
            libc::sigaction(libc::SIGUSR1, &raw const action, ptr::null_mut());
        }
        // Two frames of the kernel's, and our handler twice.
        support::signals::large_alternate_stack();
        // SAFETY: it touches another arena and raises a blocked signal, both async-signal-safe.
        let template = unsafe { Template::generate(generate) };
        let arena = Arena::builder(1 << 30)
            .window(lacuna::Window::Pages(1))
            .template(template)
            .reserve()
            .unwrap();
        for index in (0..200).step_by(2) {
            assert_eq!(support::load(&arena, index * page()), index as u8);
        }
        assert_eq!(RAN.load(Ordering::SeqCst), 100);
        assert_eq!(support::load(&other, 4 * 3 * 4096), 7);
    }));
}
