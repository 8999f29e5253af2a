//! Ways to make a child.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

/// Most seconds that a child may take.
const SECONDS: u32 = 40;

/// Forks, runs `child` there and asserts that it succeeds.
#[track_caller]
pub(crate) fn fork(child: impl FnOnce()) {
    assert_eq!(status_of_fork(child), 0, "the child failed");
}

/// Forks, runs `child` there and tells what became of it.
#[track_caller]
pub(crate) fn status_of_fork(child: impl FnOnce()) -> i32 {
    // SAFETY: the child runs the closure and exits without unwinding into the test harness.
    end(unsafe { libc::fork() }, child)
}

/// Forks by clone(2) itself, of which the C library's hooks do not know; else as [`fork`].
#[track_caller]
pub(crate) fn raw_fork(child: impl FnOnce()) {
    assert_eq!(status_of_raw_fork(child), 0, "the child failed");
}

/// As [`raw_fork`], and tells what became of the child.
#[track_caller]
pub(crate) fn status_of_raw_fork(child: impl FnOnce()) -> i32 {
    // SAFETY: as above; without any flag but the signal, clone(2) copies the process.
    let pid = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    end(pid as libc::pid_t, child)
}

/// Goes on as the child or as the parent.
#[track_caller]
fn end(pid: libc::pid_t, child: impl FnOnce()) -> i32 {
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: without preconditions. A child that hangs fails.
        unsafe { libc::alarm(SECONDS) };
        let result = catch_unwind(AssertUnwindSafe(child));
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    wait(pid)
}

#[track_caller]
pub(crate) fn wait(pid: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: the child is ours, and waited for once.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    status
}

/// Runs `child` as vfork(2) does: in a process of its own that shares the memory, while this thread
/// waits. It must not panic, nor touch the C library's thread-locals. What it returns is its status.
#[track_caller]
pub(crate) fn share(mut child: impl FnMut() -> i32) -> i32 {
    extern "C" fn run<F: FnMut() -> i32>(child: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it is the closure below, whose owner waits.
        unsafe { (*child.cast::<F>())() }
    }
    fn entry<F: FnMut() -> i32>(_: &F) -> extern "C" fn(*mut libc::c_void) -> libc::c_int {
        run::<F>
    }
    let mut stack = vec![0u128; 16 << 10];
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    let top = stack.as_mut_ptr_range().end;
    // SAFETY: the stack is the child's alone, and large; this thread waits until it is done with it.
    let pid =
        unsafe { libc::clone(entry(&child), top.cast(), flags, ptr::from_mut(&mut child).cast()) };
    assert!(pid > 0, "{}", std::io::Error::last_os_error());
    wait(pid)
}

/// Drops a child's copy of a value, which it does not use again: nor does what it unwinds through,
/// since it exits.
pub(crate) fn drop_copy<T>(value: &T) {
    // SAFETY: as said.
    unsafe { drop(ptr::read(value)) };
}
