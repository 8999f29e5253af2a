//! The kernel's side: request numbers and constants of `linux/userfaultfd.h`, which
//! `linux-raw-sys` lacks wherever the header writes them as a C expression.
//!
//! The request functions return nix's `Errno` and do nothing but the system call, so they are
//! async-signal-safe. What they may do to memory depends on the argument: they are `unsafe`, and
//! each caller proves its own case.

use crate::sys::{self, seam::Call};
use core::ffi::{c_int, c_ulong};
pub(super) use linux_raw_sys::general::*;

/// `UFFDIO`, the type byte of every request.
const TYPE: u8 = 0xAA;

/// Defines the function that makes a request.
macro_rules! request {
    ($name:ident, $call:ident, $code:ident, $nr:ident, $argument:ident) => {
        pub(super) unsafe fn $name(fd: c_int, argument: *mut $argument) -> nix::Result<c_int> {
            const REQUEST: c_ulong = nix::$code!(TYPE, $nr, size_of::<$argument>());
            // SAFETY: the argument has the type that the request says; the rest is the caller's.
            unsafe { sys::ioctl(Call::$call, fd, REQUEST, argument) }
        }
    };
}

request!(api, Api, request_code_readwrite, _UFFDIO_API, uffdio_api);
request!(register, Register, request_code_readwrite, _UFFDIO_REGISTER, uffdio_register);
// The kernel declares the next two as _IOR although it reads their argument and writes nothing.
request!(unregister, Unregister, request_code_read, _UFFDIO_UNREGISTER, uffdio_range);
request!(wake, Wake, request_code_read, _UFFDIO_WAKE, uffdio_range);
request!(copy, Copy, request_code_readwrite, _UFFDIO_COPY, uffdio_copy);
request!(zeropage, Zeropage, request_code_readwrite, _UFFDIO_ZEROPAGE, uffdio_zeropage);
request!(move_pages, Move, request_code_readwrite, _UFFDIO_MOVE, uffdio_move);
request!(
    write_protect,
    WriteProtect,
    request_code_readwrite,
    _UFFDIO_WRITEPROTECT,
    uffdio_writeprotect
);
request!(continue_, Continue, request_code_readwrite, _UFFDIO_CONTINUE, uffdio_continue);
request!(poison, Poison, request_code_readwrite, _UFFDIO_POISON, uffdio_poison);
// USERFAULTFD_IOC_NEW, the one request of /dev/userfaultfd; its argument is userfaultfd(2)'s flags.
pub(super) fn new(device: c_int, flags: c_int) -> nix::Result<c_int> {
    const REQUEST: c_ulong = nix::request_code_none!(TYPE, 0x00);
    let flags: *mut c_int = core::ptr::without_provenance_mut(flags as usize);
    // SAFETY: the request takes an integer and touches no memory of ours. It means what it means
    // here only on the misc device of its name, which is in the system's hands.
    unsafe { sys::ioctl(Call::NewFromDevice, device, REQUEST, flags) }
}

// Mode bits that linux/userfaultfd.h writes as `((__u64)1<<n)`.
pub(super) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const UFFDIO_WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub(super) const UFFDIO_CONTINUE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const UFFDIO_CONTINUE_MODE_WP: u64 = 1 << 1;
pub(super) const UFFDIO_POISON_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const UFFDIO_MOVE_MODE_DONTWAKE: u64 = 1 << 0;
pub(super) const UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES: u64 = 1 << 1;

/// Checks that a request has the number that `linux-raw-sys` took from the kernel's headers, for
/// the architecture at hand.
macro_rules! assert_request {
    ($code:ident, $nr:ident, $argument:ident, $expected:ident) => {
        const _: () = assert!(
            nix::$code!(TYPE, $nr, size_of::<$argument>()) as u32
                == linux_raw_sys::ioctl::$expected
        );
    };
}

assert_request!(request_code_readwrite, _UFFDIO_API, uffdio_api, UFFDIO_API);
assert_request!(request_code_readwrite, _UFFDIO_REGISTER, uffdio_register, UFFDIO_REGISTER);
assert_request!(request_code_read, _UFFDIO_UNREGISTER, uffdio_range, UFFDIO_UNREGISTER);
assert_request!(request_code_read, _UFFDIO_WAKE, uffdio_range, UFFDIO_WAKE);
assert_request!(request_code_readwrite, _UFFDIO_COPY, uffdio_copy, UFFDIO_COPY);
assert_request!(request_code_readwrite, _UFFDIO_ZEROPAGE, uffdio_zeropage, UFFDIO_ZEROPAGE);
assert_request!(
    request_code_readwrite,
    _UFFDIO_WRITEPROTECT,
    uffdio_writeprotect,
    UFFDIO_WRITEPROTECT
);
assert_request!(request_code_readwrite, _UFFDIO_CONTINUE, uffdio_continue, UFFDIO_CONTINUE);

const _: () = {
    // linux-raw-sys has no request numbers for these two; their size is part of the number.
    assert!(_UFFDIO_MOVE == 0x05 && size_of::<uffdio_move>() == 40);
    assert!(_UFFDIO_POISON == 0x08 && size_of::<uffdio_poison>() == 32);
    // read(2) hands out whole messages of this size.
    assert!(size_of::<uffd_msg>() == 32 && align_of::<uffd_msg>() == 1);
    assert!(UFFDIO == TYPE as u32 && UFFD_API == 0xAA);
};
