//! Other processes that look at an arena's untouched pages, debuggers, and core files.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Template};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::ptr;
use support::signals::{arena, touch};
use support::{load, page, store};

/// Tells a re-run test binary what to do.
const ROLE: &str = "LACUNA_TEST_LOOKED_AT";

/// This test binary, for the one test `name`, in a role.
fn again(name: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn is_role(role: &str) -> bool {
    std::env::var(ROLE).as_deref() == Ok(role)
}

/// Says aloud what could not be tested here: CI fails at these words.
fn not_tested(why: &str) {
    eprintln!("NOT TESTED: {why}");
}

/// An arena of nines whose first page is present, and a process that owns it and sleeps.
struct LookedAt {
    child: Child,
    base: usize,
}

impl LookedAt {
    fn start(name: &str) -> Self {
        let mut child = again(name, "owner").spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let base = lines
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("base ")?.1.parse().unwrap()))
            .expect("the owner told its address");
        Self { child, base }
    }

    /// What the process is, in the role of the owner: it never returns.
    fn own() -> ! {
        let template = Template::repeat(&9u8).unwrap();
        let arena = Arena::builder(1 << 30)
            .backend(lacuna::Backend::Userfaultfd)
            .window(lacuna::Window::Pages(1))
            .template(template)
            .reserve();
        let arena = arena.unwrap();
        store(&arena, 0, 1);
        println!("base {}", arena.as_ptr().addr());
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    }

    fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// process_vm_readv(2) at an offset.
    fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<usize, i32> {
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let address = ptr::without_provenance_mut(self.base + offset);
        let remote = libc::iovec { iov_base: address, iov_len: bytes.len() };
        // SAFETY: the local range is valid; the remote one is looked at by the kernel alone.
        let read = unsafe {
            libc::process_vm_readv(self.pid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        usize::try_from(read).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap())
    }
}

impl Drop for LookedAt {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An untouched page has no content that anybody but the owner could bring about.
#[test]
fn another_process_cannot_read_untouched_pages_and_does_not_make_them() {
    let name = "another_process_cannot_read_untouched_pages_and_does_not_make_them";
    if is_role("owner") {
        LookedAt::own();
    }
    let owner = LookedAt::start(name);
    let mut bytes = vec![0; 2 * page()];
    match owner.read(0, &mut bytes[..16]) {
        Err(libc::EPERM | libc::ENOSYS) => {
            return not_tested("process_vm_readv is not allowed here");
        }
        result => assert_eq!(result, Ok(16)),
    }
    assert_eq!(bytes[..3], [1, 9, 9]);
    assert_eq!(owner.read(7 * page(), &mut bytes), Err(libc::EFAULT));
    // From a page that is there into one that is not: short.
    assert_eq!(owner.read(0, &mut bytes), Ok(page()));

    let memory = fs::File::open(format!("/proc/{}/mem", owner.pid())).unwrap();
    use std::os::unix::fs::FileExt;
    assert_eq!(memory.read_at(&mut bytes[..8], owner.base as u64).unwrap(), 8);
    let error = memory.read_at(&mut bytes, (owner.base + 7 * page()) as u64).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(peek(owner.pid(), owner.base), Ok(0x0909_0909_0909_0901));
    assert_eq!(peek(owner.pid(), owner.base + 7 * page()), Err(libc::EIO));
}

/// A word, as a debugger reads it.
fn peek(pid: i32, address: usize) -> Result<i64, i32> {
    let none = ptr::null_mut::<libc::c_void>();
    let address = ptr::without_provenance_mut::<libc::c_void>(address);
    // SAFETY: the child is ours; the raw call writes the word to `word`.
    unsafe {
        assert_eq!(libc::ptrace(libc::PTRACE_ATTACH, pid, none, none), 0);
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        let mut word = 0i64;
        let (call, result) = (libc::SYS_ptrace, &raw mut word);
        let result = libc::syscall(call, libc::PTRACE_PEEKDATA, pid, address, result);
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap();
        assert_eq!(libc::ptrace(libc::PTRACE_DETACH, pid, none, none), 0);
        if result == 0 { Ok(word) } else { Err(errno) }
    }
}

/// gdb stops at each fault unless it is told not to, and then sees nothing of them.
#[test]
fn a_program_runs_under_gdb() {
    let name = "a_program_runs_under_gdb";
    if is_role("program") {
        let arena = arena();
        touch(&arena);
        assert_eq!(load(&arena, 1), 0);
        println!("the program is through");
        return;
    }
    let Ok(version) = Command::new("gdb").arg("--version").output() else {
        return not_tested("there is no gdb");
    };
    assert!(version.status.success());
    let run = |handle: &str| {
        let mut gdb = Command::new("gdb");
        gdb.args(["--batch", "--nx", "-ex", "set debuginfod enabled off"]);
        // With as little of the program as it takes: symbols are slow to read.
        gdb.args(["-ex", "set startup-with-shell off", "-ex", "set auto-solib-add off"]);
        gdb.args(["-ex", handle, "-ex", "run", "-ex", "info signals SIGBUS", "--args"]);
        gdb.arg(std::env::current_exe().unwrap());
        gdb.args(["--exact", name, "--nocapture", "--test-threads=1"]);
        let output = gdb.env(ROLE, "program").stdin(Stdio::null()).output().unwrap();
        support::text(&output)
    };
    let said = run("handle SIGBUS nostop noprint pass");
    if said.contains("ptrace: Operation not permitted") {
        return not_tested("ptrace is not allowed here");
    }
    assert!(said.contains("the program is through"), "{said}");
    assert!(!said.contains("received signal"), "{said}");
    let said = run("handle SIGBUS stop print pass");
    assert!(said.contains("received signal SIGBUS"), "{said}");
}

/// A violation kills by the instruction itself, so that a core file tells where.
#[test]
fn a_violation_leaves_a_core() {
    let name = "a_violation_leaves_a_core";
    if is_role("violation") {
        let arena = Arena::builder(1 << 34).limit(4096).reserve().unwrap();
        store(&arena, 0, 1);
        store(&arena, 1 << 33, 1);
        unreachable!("the limit was passed");
    }
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if pattern.starts_with(['|', '/']) || pattern.trim().is_empty() {
        return not_tested(&format!(
            "core files do not go where this test could find them: {pattern}"
        ));
    }
    let room = Room::new();
    let mut command = again(name, "violation");
    command.current_dir(&room.0);
    // SAFETY: setrlimit is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            let all = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            match libc::setrlimit(libc::RLIMIT_CORE, &raw const all) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let output = match command.output() {
        Err(error) => return not_tested(&format!("RLIMIT_CORE cannot be raised: {error}")),
        Ok(output) => output,
    };
    assert_eq!(output.status.signal(), Some(support::fault_signal()), "{}", support::text(&output));
    assert!(output.status.core_dumped(), "no core was dumped");
    let cores: Vec<u64> = fs::read_dir(&room.0)
        .unwrap()
        .map(|entry| fs::metadata(entry.unwrap().path()).unwrap())
        .map(|metadata| std::os::unix::fs::MetadataExt::blocks(&metadata) * 512)
        .collect();
    // 16 GiB are reserved: what was not touched takes no room.
    assert!(matches!(cores[..], [4096..=0x1000_0000]), "cores of {cores:?} bytes");
}

/// A directory for the time of a test.
struct Room(PathBuf);

impl Room {
    fn new() -> Self {
        let name = format!("lacuna-core-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
