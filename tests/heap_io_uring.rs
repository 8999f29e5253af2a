//! Rings read into blocks that nobody has touched: in the system call, in threads of the kernel's,
//! which no signal could help, and into pages that are pinned beforehand.

#![allow(missing_docs, reason = "a test")]

mod support;

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types::Fd};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::ptr;
use support::heap::{alloc, heap, layout};
use support::{file_of, noise};

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;

/// Pinned pages count against RLIMIT_MEMLOCK, of which an ordinary user has little.
const PINNED: usize = MIB;

/// A ring, if the kernel has it and does not deny it.
fn ring() -> Option<IoUring> {
    let error = match IoUring::new(4) {
        Ok(ring) => return Some(ring),
        Err(error) => error,
    };
    let denied = matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS));
    assert!(denied, "io_uring_setup: {error}");
    // Past the harness, which captures what is printed.
    let line = "NOT TESTED, io_uring is denied here: reads into untouched blocks\n";
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

/// Does what the entry says, and tells what came of it.
fn complete(ring: &mut IoUring, entry: &Entry) -> i32 {
    // SAFETY: the buffer is a block that is never freed.
    unsafe { ring.submission().push(entry) }.unwrap();
    assert_eq!(ring.submit_and_wait(1).unwrap(), 1);
    let completion = ring.completion().next();
    completion.expect("a ring has waited for it").result()
}

struct Source {
    file: File,
    start: Vec<u8>,
}

impl Source {
    fn fd(&self) -> Fd {
        Fd(self.file.as_raw_fd())
    }

    /// Checks a block of `len` bytes that was filled from the file.
    fn check(&self, block: *mut u8, len: usize, read: i32) {
        assert_eq!(read, len as i32, "{}", std::io::Error::from_raw_os_error(-read));
        let start = len.min(self.start.len());
        // SAFETY: the block is so long, and the kernel has initialised it.
        assert_eq!(unsafe { std::slice::from_raw_parts(block, start) }, &self.start[..start]);
    }
}

fn read_pinned(ring: &mut IoUring, source: &Source, block: *mut u8, len: usize) {
    let buffer = libc::iovec { iov_base: block.cast(), iov_len: len };
    // SAFETY: the block is so long, and never freed.
    unsafe { ring.submitter().register_buffers(&[buffer]) }.unwrap();
    let read = opcode::ReadFixed::new(source.fd(), block, len as u32, 0).build();
    source.check(block, len, complete(ring, &read));
    ring.submitter().unregister_buffers().unwrap();
}

/// With all signals blocked, so that no handler could help.
#[test]
fn rings_read_into_untouched_blocks_of_every_size() {
    let Some(mut ring) = ring() else { return };
    let heap = heap(64 * GIB, None);
    // SAFETY: the mask is this thread's, and valid.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, ptr::null_mut());
    }
    let start = noise(64 << 10, 11);
    let source = Source { file: file_of(&start), start };
    source.file.set_len(100 * MIB as u64).unwrap();
    let classes: Vec<usize> = heap.stats().classes().map(|class| class.block_bytes).collect();
    let large = [200_000, MIB, MIB + 1, 3 * MIB, 100 * MIB];
    for len in classes.into_iter().chain(large) {
        let new = || alloc(&heap, layout(len));
        for flags in [Flags::empty(), Flags::ASYNC] {
            let block = new();
            let read = opcode::Read::new(source.fd(), block, len as u32).build().flags(flags);
            source.check(block, len, complete(&mut ring, &read));
        }
        if len <= PINNED {
            read_pinned(&mut ring, &source, new(), len);
        }
    }
}
