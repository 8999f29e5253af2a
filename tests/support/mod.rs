//! What several test files need. Each compiles a copy of its own and uses a part of it.
#![allow(dead_code, reason = "every test file uses a part of this module")]

pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod seccomp;
pub(crate) mod signals;
pub(crate) mod tracked;

use lacuna::{Arena, Backend, Template, Window};
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::FromRawFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// The windows that matter: one page, less than a chunk, a whole chunk, the default.
pub(crate) const WINDOWS: [Window; 4] =
    [Window::Pages(1), Window::Pages(16), Window::Pages(512), Window::Adaptive];

pub(crate) fn page() -> usize {
    lacuna::page_size()
}

/// Reads a byte of an arena, touching it.
pub(crate) fn load(arena: &Arena, offset: usize) -> u8 {
    assert!(offset < arena.len());
    // SAFETY: the byte is within the arena, and every value is a valid one.
    unsafe { arena.as_ptr().add(offset).read_volatile() }
}

/// Writes a byte of an arena, touching it.
pub(crate) fn store(arena: &Arena, offset: usize, value: u8) {
    assert!(offset < arena.len());
    // SAFETY: the byte is within the arena; tests hold no references into arenas.
    unsafe { arena.as_ptr().add(offset).write_volatile(value) }
}

/// Reads bytes of an arena, touching each.
pub(crate) fn bytes(arena: &Arena, range: Range<usize>) -> Vec<u8> {
    range.map(|offset| load(arena, offset)).collect()
}

/// Discards a range, of which tests hold no references.
pub(crate) fn discard(arena: &Arena, range: Range<usize>) {
    // SAFETY: nobody has a reference into the arena, and every byte is valid.
    unsafe { arena.discard(range) }.unwrap();
}

/// Drops a range, of which tests hold no references, without the arena's knowing.
pub(crate) fn drop_behind(arena: &Arena, range: Range<usize>) {
    let start = arena.as_ptr().wrapping_add(range.start).cast();
    // SAFETY: nobody has a reference into the arena, and every byte is valid.
    let dropped = unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
    assert_eq!(dropped, 0, "{}", std::io::Error::last_os_error());
}

/// Brings an arena, of which tests hold no references, back to its template.
pub(crate) fn reset(arena: &Arena) {
    // SAFETY: nobody has a reference into the arena, and every byte is valid.
    unsafe { arena.reset() }.unwrap();
}

/// The backend of arenas that do not ask for one.
pub(crate) fn backend() -> Backend {
    Arena::builder(1).reserve().unwrap().backend()
}

/// The signal that a violation ends the process by.
pub(crate) fn fault_signal() -> i32 {
    match backend() {
        Backend::Mprotect => libc::SIGSEGV,
        _ => libc::SIGBUS,
    }
}

/// Has all arenas of this process use userfaultfd, for tests of what is true of that alone. To be called
/// first in a child.
pub(crate) fn only_userfaultfd() {
    // SAFETY: no other thread of the child looks at the environment.
    unsafe { std::env::set_var("LACUNA_BACKEND", "userfaultfd") };
}

/// Has the kernel write `bytes` at `offset`, by read(2) from a pipe.
pub(crate) fn read_into(arena: &Arena, offset: usize, bytes: &[u8]) -> std::io::Result<usize> {
    let (mut from, mut to) = std::io::pipe()?;
    to.write_all(bytes)?;
    assert!(offset + bytes.len() <= arena.len());
    // SAFETY: the bytes are within the arena; only the kernel writes through the slice.
    from.read(unsafe { std::slice::from_raw_parts_mut(arena.as_ptr().add(offset), bytes.len()) })
}

/// Bytes of memory that the kernel reports for an address range, of whole mappings.
pub(crate) fn rss(start: usize, len: usize) -> usize {
    smaps_of(start, len, &["Rss:", "Swap:"]) << 10
}

/// The sum of numbers in kB that smaps has of an address range of whole mappings.
pub(crate) fn smaps_of(start: usize, len: usize, fields: &[&str]) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    let mut kibibytes = 0;
    for line in smaps.lines() {
        if let Some(range) = addresses(line) {
            inside = range.start >= start && range.end <= start + len;
        } else if inside && fields.iter().any(|field| line.starts_with(field)) {
            kibibytes += line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap();
        }
    }
    kibibytes
}

/// As [`rss`], of an arena.
pub(crate) fn arena_rss(arena: &Arena) -> usize {
    rss(arena.as_ptr().addr(), arena.len())
}

/// Bytes of memory of an arena's own: what it has in common with others is none.
pub(crate) fn arena_memory(arena: &Arena) -> usize {
    smaps_of(arena.as_ptr().addr(), arena.len(), &["Anonymous:", "Swap:"]) << 10
}

/// The addresses that a header line of smaps, or a line of maps, begins with.
pub(crate) fn addresses(line: &str) -> Option<Range<usize>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let hex = |text| usize::from_str_radix(text, 16).ok();
    Some(hex(start)?..hex(end)?)
}

/// A file in memory with this content.
pub(crate) fn file_of(content: &[u8]) -> File {
    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let mut file = unsafe {
        let descriptor = libc::memfd_create(c"lacuna-test".as_ptr(), libc::MFD_CLOEXEC);
        assert!(descriptor >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(descriptor)
    };
    file.write_all(content).unwrap();
    file
}

/// Bytes without a pattern that a page or a power of two could hide.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng(seed);
    (0..len).map(|_| rng.next() as u8).collect()
}

/// A small deterministic generator (splitmix64).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

/// A template whose every page tells its own number, so that a page in the wrong place shows.
pub(crate) fn numbered_pages() -> Template {
    fn number(page_index: u64, page: &mut [u8]) {
        let (words, _) = page.as_chunks_mut::<8>();
        for (index, word) in words.iter_mut().enumerate() {
            *word = (page_index << 16 | index as u64).to_ne_bytes();
        }
    }
    // SAFETY: it computes and writes to the page it is given, nothing else.
    unsafe { Template::generate(number) }
}

/// Aborts the process, loudly, if it is still alive after `seconds`: a livelock cannot be failed
/// any other way.
pub(crate) struct Watchdog(mpsc::Sender<()>);

impl Watchdog {
    pub(crate) fn new(name: &'static str, seconds: u64) -> Self {
        let (alive, expired) = mpsc::channel::<()>();
        std::thread::spawn(move || {
            let timeout = Err(mpsc::RecvTimeoutError::Timeout);
            if expired.recv_timeout(Duration::from_secs(seconds)) == timeout {
                eprintln!("{name}: no end after {seconds} s, aborting");
                std::process::abort();
            }
        });
        Self(alive)
    }
}

/// Tells a re-run test binary what it is.
const ROLE: &str = "LACUNA_TEST_ROLE";

/// Most seconds that a child may take before it counts as hanging.
const CHILD_SECONDS: u64 = 60;

/// Runs `body` in a process of its own and returns what became of that: the test binary is run
/// again for the one test `name`, which reaches this line again, by `role`, and runs `body` instead
/// of starting a child. A body that returns exits with 0.
pub(crate) fn in_child(name: &str, role: &str, body: impl FnOnce()) -> Output {
    if std::env::var(ROLE).as_deref() == Ok(role) {
        body();
        std::process::exit(0);
    }
    rerun(name, &[(ROLE, role)])
}

/// Runs the test `name` of the current binary in a process of its own, with more environment.
pub(crate) fn rerun(name: &str, env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.envs(env.iter().copied()).env("RUST_BACKTRACE", "0");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: setrlimit is async-signal-safe. Children die on purpose: no core files.
    unsafe {
        command.pre_exec(|| {
            libc::setrlimit(libc::RLIMIT_CORE, &libc::rlimit { rlim_cur: 0, rlim_max: 0 });
            Ok(())
        });
    }
    let child = command.spawn().unwrap();
    let pid = child.id();
    let (done, ended) = mpsc::channel();
    let waiting = std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(Duration::from_secs(CHILD_SECONDS)) {
        Ok(output) => {
            // Ended for good: std's handler of SIGBUS, which tests provoke, makes a thread that ends
            // meanwhile wait for ever.
            let _ = waiting.join();
            output.unwrap()
        }
        Err(_) => {
            // SAFETY: the child is ours and not waited for yet.
            unsafe { libc::kill(pid as i32, libc::SIGKILL) };
            panic!("{name} {env:?}: the child hangs: {}", text(&ended.recv().unwrap().unwrap()));
        }
    }
}

/// Asserts that a child exited with 0 and said nothing on stderr.
#[track_caller]
pub(crate) fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", text(output));
    assert_eq!(stderr(output), "");
}

/// Asserts that a child was killed by `signal`.
#[track_caller]
pub(crate) fn assert_killed(output: &Output, signal: i32) {
    assert_eq!(output.status.signal(), Some(signal), "{}", text(output));
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// All that is known of a child, for messages.
pub(crate) fn text(output: &Output) -> String {
    format!("{}\n{}\n{}", output.status, stdout(output), stderr(output))
}
