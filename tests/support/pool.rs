//! Huge pages for tests: set aside while a test needs them, if that is allowed here.

#![allow(dead_code, reason = "every test file uses a part of this module")]

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Bytes of a huge page.
pub(crate) const HUGE: usize = 2 << 20;

/// Pages set aside beyond those that there were, until it is dropped. One test at a time has one, in
/// all test binaries.
pub(crate) struct Pool {
    /// How many they are.
    added: usize,
    /// None in a child, whose parent has set the pages aside.
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

fn set(pages: usize) -> std::io::Result<()> {
    std::fs::write(Path::new(POOL).join("nr_hugepages"), pages.to_string())
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
            return Some(Self { added: 0, lock: None });
        }
        let Some(lock) = lock() else {
            not_run("the lock on the huge pages belongs to another user");
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
        let mut pool = Self { added: 0, lock: Some(lock) };
        let before = number("nr_hugepages");
        if pages > 0 && set(before + pages).is_err() {
            not_run("huge pages cannot be set aside here (nr_hugepages needs root)");
            return None;
        }
        pool.added = number("nr_hugepages").saturating_sub(before);
        if available() < pages || exactly && available() != pages {
            not_run("the system has not so many huge pages to give");
            return None;
        }
        Some(pool)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // As many fewer as there are more, since others may have changed the number meanwhile.
        if self.added > 0 {
            let _ = set(number("nr_hugepages").saturating_sub(self.added));
        }
    }
}

fn not_run(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past the harness, which keeps what a test that passes has printed.
    std::io::stderr().write_all(format!("NOT RUN: {test}: {why}\n").as_bytes()).unwrap();
}

/// A lock on the pool, between processes.
fn lock() -> Option<File> {
    let path = std::env::temp_dir().join("lacuna-huge-pages.lock");
    let file = OpenOptions::new().create(true).append(true).open(path).ok()?;
    // SAFETY: locking touches no memory.
    assert_eq!(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) }, 0);
    Some(file)
}
