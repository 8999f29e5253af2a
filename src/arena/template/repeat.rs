//! Values that are repeated over and over.

use crate::arena::mapping::Mapping;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::page::page_size;
use core::ptr;

/// Bytes that one system call copies of a repeated value: more would hardly be faster, and cost
/// memory for each template.
const REPEAT_SPAN: usize = 64 << 10;

/// The `period` bytes at `value`, and as many copies of them as one system call is to copy.
///
/// # Safety
/// `value` is valid for reads of `period` bytes, which is not zero.
pub(super) unsafe fn buffer(value: *const u8, period: usize) -> Result<Mapping> {
    // SAFETY: as the caller promises.
    unsafe { filled(value, period, REPEAT_SPAN.max(page_size())) }
}

/// The `period` bytes at `value`, over and over, for `more` bytes after the first time.
///
/// # Safety
/// `value` is valid for reads of `period` bytes, which is not zero.
pub(super) unsafe fn filled(value: *const u8, period: usize, more: usize) -> Result<Mapping> {
    let too_long = Error::new(Operation::Template, ErrorKind::TooLong).value(period);
    let len = period.checked_add(more).ok_or(too_long)?;
    // SAFETY: as the caller promises, and the length is at least one period.
    unsafe { repeated(value, period, len) }
}

/// `len` bytes that repeat the first `period`, which are at `value`.
///
/// # Safety
/// `value` is valid for reads of `period` bytes, `period` is not zero and at most `len`.
unsafe fn repeated(value: *const u8, period: usize, len: usize) -> Result<Mapping> {
    let buffer = Mapping::zeroed(len)?;
    let start = buffer.base().as_ptr();
    // SAFETY: the buffer is longer than the value, and then than what has been written: each round
    // doubles the copies, or fills what is left.
    unsafe {
        ptr::copy_nonoverlapping(value, start, period);
        let mut done = period;
        while done < len {
            let more = done.min(len - done);
            ptr::copy_nonoverlapping(start, start.add(done), more);
            done += more;
        }
    }
    Ok(buffer)
}

/// Whether a buffer starts with `len` zeroes.
pub(super) fn is_zero(buffer: &Mapping, len: usize) -> bool {
    let start = buffer.base().as_ptr();
    // A value's padding may be uninitialised, as the compiler sees it; in memory it is bytes.
    // SAFETY: the empty assembly stands for code that writes the buffer's bytes back as they are:
    // from here on they are initialised.
    unsafe { core::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
    // SAFETY: the buffer is at least so long.
    unsafe { core::slice::from_raw_parts(start, len) }.iter().all(|&byte| byte == 0)
}
