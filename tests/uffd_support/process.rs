//! Processes: a test rerun in one of its own, forks, and the owner of a userfaultfd who is gone.

use super::loudly;
use lacuna::uffd::{Features, Uffd};
use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::{Command, Output};

const VARIABLE: &str = "LACUNA_UFFD_TEST_CHILD";

/// Runs `body` in a process of its own, in which the test called `name` is the only one. Returns
/// how that process ended; `None` in that process itself, after `body`.
pub(crate) fn alone(name: &str, body: impl FnOnce()) -> Option<Output> {
    if std::env::var(VARIABLE).is_ok_and(|value| value == name) {
        body();
        return None;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, name)
        .output()
        .unwrap();
    Some(output)
}

/// Runs `body` in a process of its own and expects it to succeed there.
pub(crate) fn succeeds_alone(name: &str, body: impl FnOnce()) {
    let Some(output) = alone(name, body) else { return };
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{stdout}\n{stderr}", output.status);
    assert!(stdout.contains("1 passed"), "no test is called {name}: {stdout}");
    if !stderr.is_empty() {
        loudly(&stderr);
    }
}

/// Forks. The child runs `body`, which must be async-signal-safe because other threads may have
/// held locks, and exits with what it returns.
pub(crate) fn fork(body: impl FnOnce() -> c_int) -> Child {
    clone(0, body)
}

/// As [`fork`], with clone(2)'s flags.
pub(crate) fn clone(flags: c_int, body: impl FnOnce() -> c_int) -> Child {
    let flags = libc::c_long::from(flags | libc::SIGCHLD);
    // SAFETY: without CLONE_VM and a stack this is fork(2); the child is as restricted as after
    // fork(2), which is the caller's promise, and never returns from here.
    unsafe {
        match libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) {
            -1 => panic!("clone: {}", std::io::Error::last_os_error()),
            0 => libc::_exit(body()),
            pid => Child(pid as libc::pid_t),
        }
    }
}

/// A child process, killed and waited for at the end.
pub(crate) struct Child(libc::pid_t);

impl Child {
    pub(crate) fn exit_code(self) -> c_int {
        let mut status = 0;
        // SAFETY: a child of this process that nobody else waits for.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        assert_eq!(waited, self.0);
        std::mem::forget(self);
        assert!(libc::WIFEXITED(status), "the child died, status {status:#x}");
        libc::WEXITSTATUS(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: a child of this process that has not been waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// A userfaultfd whose process has exited: a child that shares our descriptors, not our memory,
/// opens it.
pub(crate) fn orphan(features: Features) -> Uffd {
    let child = clone(libc::CLONE_FILES, || {
        match Uffd::builder().features(features).nonblocking(true).open() {
            Ok(uffd) => std::os::fd::IntoRawFd::into_raw_fd(uffd.into_fd()),
            Err(_) => 255,
        }
    });
    let fd = child.exit_code();
    assert_ne!(fd, 255, "the child could not open a userfaultfd");
    // SAFETY: the child made this descriptor in our table and left it to us; it is what `open`
    // returned there.
    unsafe { Uffd::from_parts(OwnedFd::from_raw_fd(fd), features) }
}
