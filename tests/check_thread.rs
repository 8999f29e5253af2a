//! What `check_thread` says beforehand, and what happens to a thread that does not listen.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, ErrorKind, check_thread};
use std::mem;
use std::ptr;
use support::signals::{arena, install, touch};
use support::{assert_killed, assert_success, fault_signal, in_child, load, page, store};

fn kind() -> Option<ErrorKind> {
    check_thread().err().map(|error| {
        assert!(error.hint().is_some(), "{error}");
        error.kind()
    })
}

/// Blocks signals in this thread, or lets them in again.
fn block(how: libc::c_int, signals: &[libc::c_int]) {
    // SAFETY: zeroes are a valid set, and so are the signals.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        signals.iter().for_each(|signal| assert_eq!(libc::sigaddset(&raw mut set, *signal), 0));
        assert_eq!(libc::pthread_sigmask(how, &raw const set, ptr::null_mut()), 0);
    }
}

/// Gives this thread an alternate stack, or none.
fn alternate(start: *mut u8, len: usize) {
    let flags = if len == 0 { libc::SS_DISABLE } else { 0 };
    let stack = libc::stack_t { ss_sp: start.cast(), ss_flags: flags, ss_size: len };
    // SAFETY: the tests keep the memory until the thread ends or has another stack.
    assert_eq!(unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) }, 0);
}

#[test]
fn ordinary_threads_can_fault() {
    assert_success(&in_child("ordinary_threads_can_fault", "all", || {
        // Before there is a handler, and with one.
        check_thread().unwrap();
        let arena = arena();
        check_thread().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                check_thread().unwrap();
                touch(&arena);
            });
        });
    }));
}

#[test]
fn a_blocked_signal_is_told_and_deadly() {
    let name = "a_blocked_signal_is_told_and_deadly";
    assert_success(&in_child(name, "told", || {
        block(libc::SIG_BLOCK, &[libc::SIGBUS]);
        assert_eq!(kind(), Some(ErrorKind::SignalBlocked));
        let arena = Arena::builder(1 << 30).backend(Backend::Userfaultfd).reserve().unwrap();
        let error = check_thread().unwrap_err();
        assert!(error.to_string().starts_with(
            "check the thread (SIGBUS): the signal that faults raise is blocked; a fault would kill"
        ));
        block(libc::SIG_UNBLOCK, &[libc::SIGBUS]);
        // No arena needs SIGSEGV, and others matter to nobody.
        block(libc::SIG_BLOCK, &[libc::SIGSEGV, libc::SIGUSR1, libc::SIGALRM]);
        check_thread().unwrap();
        touch(&arena);
        // One without userfaultfd does.
        let _protected = Arena::builder(1 << 30).backend(Backend::Mprotect).reserve().unwrap();
        let error = check_thread().unwrap_err();
        assert!(error.to_string().starts_with("check the thread (SIGSEGV): the signal"), "{error}");
        block(libc::SIG_UNBLOCK, &[libc::SIGSEGV]);
        check_thread().unwrap();
    }));
    let output = in_child(name, "deadly", || {
        let arena = arena();
        block(libc::SIG_BLOCK, &[libc::SIGBUS]);
        store(&arena, 1 << 22, 1);
    });
    assert_killed(&output, libc::SIGBUS);
}

#[test]
fn a_signal_that_is_ignored_or_reset_is_told_and_deadly() {
    let name = "a_signal_that_is_ignored_or_reset_is_told_and_deadly";
    for action in [libc::SIG_IGN, libc::SIG_DFL] {
        let output = in_child(name, &format!("{action}"), || {
            let arena = arena();
            install(action, 0);
            assert_eq!(kind(), Some(ErrorKind::Displaced));
            lacuna::take_front().unwrap();
            check_thread().unwrap();
            touch(&arena);
            install(action, 0);
            store(&arena, 1 << 35, 1);
        });
        assert_killed(&output, libc::SIGBUS);
    }
}

#[test]
fn alternate_stacks() {
    assert_success(&in_child("alternate_stacks", "all", || {
        let arena = arena();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                alternate(ptr::null_mut(), 0);
                check_thread().unwrap();
                touch(&arena);
                // The kernel refuses what is smaller than its own frame.
                // SAFETY: getauxval has no preconditions.
                let least = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
                let least = least.max(libc::MINSIGSTKSZ);
                let mut small = vec![0u8; least + 64];
                alternate(small.as_mut_ptr(), small.len());
                assert_eq!(kind(), Some(ErrorKind::AlternateStackTooSmall));
                let mut large = vec![0u8; least + (8 << 10)];
                alternate(large.as_mut_ptr(), large.len());
                check_thread().unwrap();
                touch(&arena);
                // SAFETY: the offset is within the arena.
                alternate(unsafe { arena.as_ptr().add(1 << 29) }, 64 << 10);
                assert_eq!(kind(), Some(ErrorKind::AlternateStackInArena));
                alternate(ptr::null_mut(), 0);
            });
        });
    }));
}

/// The kernel cannot write a signal's frame to a page that would raise the next.
#[test]
fn an_alternate_stack_in_an_arena_is_deadly() {
    let output = in_child("an_alternate_stack_in_an_arena_is_deadly", "deadly", || {
        let arena = arena();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // SAFETY: the offset is within the arena.
                alternate(unsafe { arena.as_ptr().add(1 << 29) }, 64 << 10);
                load(&arena, 1 << 22);
            });
        });
    });
    assert_killed(&output, libc::SIGSEGV);
}

/// A thread as C makes it, without an alternate stack, on a stack of its own or one in an arena.
fn c_thread(
    stack: Option<(&Arena, usize)>,
    run: extern "C" fn(*mut libc::c_void) -> *mut libc::c_void,
    argument: &Arena,
) {
    // SAFETY: the attributes are initialised; the thread is joined before the arenas go.
    unsafe {
        let mut attributes: libc::pthread_attr_t = mem::zeroed();
        assert_eq!(libc::pthread_attr_init(&raw mut attributes), 0);
        if let Some((arena, len)) = stack {
            let start = arena.as_ptr().cast();
            assert_eq!(libc::pthread_attr_setstack(&raw mut attributes, start, len), 0);
        }
        let mut thread = mem::zeroed();
        let argument = ptr::from_ref(argument).cast_mut().cast();
        let made = libc::pthread_create(&raw mut thread, &raw const attributes, run, argument);
        assert_eq!(made, 0);
        assert_eq!(libc::pthread_join(thread, ptr::null_mut()), 0);
    }
}

extern "C" fn touch_all(arena: *mut libc::c_void) -> *mut libc::c_void {
    check_thread().unwrap();
    // SAFETY: the arena outlives the thread, which is joined.
    touch(unsafe { &*arena.cast::<Arena>() });
    ptr::null_mut()
}

#[test]
fn threads_made_by_c_can_fault_without_an_alternate_stack() {
    let arena = arena();
    for _ in 0..5 {
        c_thread(None, touch_all, &arena);
    }
}

/// Goes down until frames lie lower than an address; counts them.
#[inline(never)]
fn deep(lowest: usize) -> usize {
    let frame = std::hint::black_box([1u8; 2048]);
    match frame.as_ptr().addr() > lowest {
        true => deep(lowest) + usize::from(frame[lowest % frame.len()]),
        false => 0,
    }
}

/// As [`deep`], by 4 MiB.
fn four_mebibytes_deep() -> usize {
    let here = std::hint::black_box([0u8; 1]);
    deep(here.as_ptr().addr() - (4 << 20))
}

/// Thread start-up touches the stack's end with all signals blocked, so that must be present; and a
/// signal that grows the stack needs the alternate one.
#[test]
fn a_threads_stack_in_an_arena() {
    extern "C" fn with_alternate(_: *mut libc::c_void) -> *mut libc::c_void {
        assert_eq!(kind(), Some(ErrorKind::NoAlternateStack));
        let mut stack = vec![0u8; 64 << 10];
        alternate(stack.as_mut_ptr(), stack.len());
        check_thread().unwrap();
        assert!(four_mebibytes_deep() > 100);
        alternate(ptr::null_mut(), 0);
        ptr::null_mut()
    }
    extern "C" fn without(_: *mut libc::c_void) -> *mut libc::c_void {
        four_mebibytes_deep();
        ptr::null_mut()
    }
    const LEN: usize = 8 << 20;
    const PRESENT: usize = 64 << 10;
    let name = "a_threads_stack_in_an_arena";
    let stack = |present: usize| {
        let stack = Arena::builder(1 << 30).name("stack").reserve().unwrap();
        if present > 0 {
            stack.populate(LEN - present..LEN).unwrap();
        }
        stack
    };
    assert_success(&in_child(name, "with", || {
        let stack = stack(PRESENT);
        c_thread(Some((&stack, LEN)), with_alternate, &stack);
        let resident = stack.stats().resident_bytes;
        assert!(resident > (4 << 20) && resident < LEN, "{resident} bytes are resident");
        assert_eq!(load(&stack, LEN + page()), 0);
    }));
    let output = in_child(name, "without", || {
        let stack = stack(PRESENT);
        c_thread(Some((&stack, LEN)), without, &stack);
    });
    assert_killed(&output, libc::SIGSEGV);
    let output = in_child(name, "untouched", || {
        let stack = stack(0);
        c_thread(Some((&stack, LEN)), with_alternate, &stack);
    });
    assert_killed(&output, fault_signal());
}
