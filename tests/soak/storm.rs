//! Signals, from a timer and from a thread, whose handler touches an arena on top of whatever its
//! thread is doing.

use crate::plot::{Plot, Sharing, template};
use crate::support::{Rng, page};
use crate::tally::{TALLY, count};
use crate::words::{Page, Untouched, belongs, page_words, tag};
use lacuna::{Arena, Window};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The threads that get signals.
static TARGETS: Mutex<Vec<libc::pthread_t>> = Mutex::new(Vec::new());
/// What the handler touches; there until the process ends.
static PLOT: AtomicPtr<Plot> = AtomicPtr::new(std::ptr::null_mut());
/// What it found that should not be there: the word's number and its value.
static WRONG: (AtomicUsize, AtomicU64) = (AtomicUsize::new(0), AtomicU64::new(0));

const PAGES: usize = 4096;

/// The calling thread gets signals for as long as this lives.
pub(crate) struct Target(libc::pthread_t);

impl Target {
    pub(crate) fn new() -> Self {
        // SAFETY: it has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        TARGETS.lock().unwrap().push(thread);
        Self(thread)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        TARGETS.lock().unwrap().retain(|thread| *thread != self.0);
    }
}

/// Installs the handlers.
pub(crate) fn prepare() {
    let untouched = Untouched::Generate;
    let builder = Arena::builder(PAGES * page()).template(template(untouched));
    let plot = Plot::of(builder, untouched, Sharing::All, Window::Adaptive, PAGES);
    PLOT.store(Box::leak(Box::new(plot)), Ordering::Release);
    for signal in [libc::SIGUSR1, libc::SIGALRM] {
        // SAFETY: the handler is async-signal-safe: it touches memory and atomics.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = touch as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
        }
    }
}

/// Has the process get SIGALRM so often; 0 ends it.
pub(crate) fn set_timer(microseconds: i64) {
    let interval = libc::timeval { tv_sec: 0, tv_usec: microseconds };
    let timer = libc::itimerval { it_interval: interval, it_value: interval };
    // SAFETY: the timer is valid.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}

/// Reads a word and writes it. What is wrong is remembered: a handler cannot panic.
extern "C" fn touch(_signal: libc::c_int) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    // SAFETY: stored before the handler was installed, to a plot that stays.
    let plot = unsafe { &*PLOT.load(Ordering::Acquire) };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // One in each of several pages, near and far.
    for step in 0..4 {
        let index = number.wrapping_mul(step * 61 + 1) % PAGES;
        let word = number % page_words();
        let at = index * page_words() + word;
        let found = plot.words(index)[word].load(Ordering::Relaxed);
        if found != plot.untouched.word(at) && !belongs(plot.id, at, found) {
            WRONG.1.store(found, Ordering::Relaxed);
            WRONG.0.store(at + 1, Ordering::Release);
        }
        plot.words(index)[word].store(tag(plot.id, at, number as u16), Ordering::Relaxed);
    }
    count(&TALLY.signals);
}

/// Sends signals to all targets, and discards what their handlers touch.
pub(crate) fn send_until(stop: &AtomicBool) {
    // SAFETY: as in `touch`.
    let plot = unsafe { &*PLOT.load(Ordering::Acquire) };
    let mut rng = Rng(1);
    while !stop.load(Ordering::Relaxed) {
        for thread in TARGETS.lock().unwrap().iter() {
            // SAFETY: the thread removes itself, under the lock, before it ends.
            unsafe { libc::pthread_kill(*thread, libc::SIGUSR1) };
        }
        let first = rng.below(PAGES);
        plot.discard(first..PAGES.min(first + 600));
        plot.write(rng.below(PAGES), Page::Full(1));
        std::thread::sleep(Duration::from_micros(1500));
    }
}

/// Asserts that no handler found anything wrong.
pub(crate) fn check() {
    let at = WRONG.0.load(Ordering::Acquire);
    let found = crate::words::Found(WRONG.1.load(Ordering::Relaxed));
    assert_eq!(at, 0, "a handler found {found} in word {}", at.wrapping_sub(1));
}
