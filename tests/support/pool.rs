//! Huge pages for tests: set aside while a test needs them, if that is allowed here.

#![allow(dead_code, reason = "every test file uses a part of this module")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Bytes of a huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// Sets `$1` pages aside and says so, until it is told to, or whoever started it is gone: then it puts as
/// many back as there are more, since others may have changed the number meanwhile. Its standard error is
/// the lock.
const GUARDIAN: &str = "
    before=$(cat nr_hugepages)
    { echo $((before + $1)) > nr_hugepages; } 2> /dev/null && echo set || echo denied
    added=$(($(cat nr_hugepages) - before))
    read -r line
    [ $added -le 0 ] || echo $(($(cat nr_hugepages) - added)) > nr_hugepages";

/// Pages set aside beyond those that there were, until it is dropped or its process has died. One test
/// at a time has one, in all test binaries.
pub(crate) struct Pool {
    /// A process, since a test that is killed does not tidy up. None if there is nothing to put back: no
    /// page was set aside, or by the parent of this process.
    guardian: Option<Child>,
    lock: Option<File>,
}

/// A number that the kernel has on the pool.
pub(crate) fn number(name: &str) -> usize {
    std::fs::read_to_string(Path::new(POOL).join(name))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

/// Pages that can be had: those that are there, and those that may be made.
pub(crate) fn available() -> usize {
    let more = number("nr_overcommit_hugepages").saturating_sub(number("surplus_hugepages"));
    number("free_hugepages").saturating_sub(number("resv_hugepages")) + more
}

/// How long a test waits for huge pages of somebody else's to be used or given back.
const PATIENCE: Duration = Duration::from_secs(10);

impl Pool {
    /// At least `pages` pages to be had. `None` if that cannot be arranged: then the test says so.
    pub(crate) fn with(pages: usize) -> Option<Self> {
        Self::arrange(pages, false)
    }

    /// Exactly `pages` pages to be had.
    pub(crate) fn exactly(pages: usize) -> Option<Self> {
        Self::arrange(pages, true)
    }

    fn arrange(pages: usize, exactly: bool) -> Option<Self> {
        if std::env::var_os("LACUNA_TEST_ROLE").is_some() {
            return Some(Self { guardian: None, lock: None });
        }
        let Some(lock) = lock() else {
            not_run("this kernel has no huge pages of 2 MiB (hugetlbfs)");
            return None;
        };
        let start = Instant::now();
        while exactly && available() > 0 && start.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
        if exactly && available() > 0 {
            not_run("somebody else's huge pages are free on this machine");
            return None;
        }
        let mut pool = Self { guardian: None, lock: Some(lock) };
        if pages > 0 && !pool.set_aside(pages) && available() < pages {
            not_run("huge pages cannot be set aside here (nr_hugepages needs root)");
            return None;
        }
        if available() < pages || exactly && available() != pages {
            not_run("the system has not so many huge pages to give");
            return None;
        }
        Some(pool)
    }

    /// False if that is not allowed.
    fn set_aside(&mut self, pages: usize) -> bool {
        let lock = self.lock.as_ref().and_then(|lock| lock.try_clone().ok());
        let mut guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "sh", &pages.to_string()])
            .current_dir(POOL)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(lock.expect("the lock is there"))
            // What is sent to the test's group, by a terminal or a timeout, is not for it.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let mut said = String::new();
        let output = guardian.stdout.take().expect("it is piped");
        let read = BufReader::new(output).read_line(&mut said);
        self.guardian = Some(guardian);
        read.is_ok() && said == "set\n"
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let Some(mut guardian) = self.guardian.take() else { return };
        // Said, not only closed: a forked child may have the pipe too.
        let told =
            guardian.stdin.take().is_some_and(|mut input| input.write_all(b"done\n").is_ok());
        let ended = guardian.wait();
        if !std::thread::panicking() {
            assert!(told && ended.is_ok(), "huge pages may be left: {ended:?}");
        }
    }
}

fn not_run(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness, which keeps what a test that passes has printed.
    std::io::stderr().write_all(format!("NOT RUN: {test}: {why}\n").as_bytes()).unwrap();
}

/// A lock on the pool, between threads and processes, of any user: that of the kernel's file itself.
fn lock() -> Option<File> {
    let file = File::open(Path::new(POOL).join("nr_hugepages")).ok()?;
    // SAFETY: locking touches no memory.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    Some(file)
}
