//! What the environment says to the global allocator, read and answered without allocating.

use super::core::Core;
use super::line::Line;
use crate::atomic::{AtomicPtr, Ordering};
use core::ffi::CStr;
use core::fmt::Write;
use core::ptr::{self, NonNull};

/// What the environment asks for.
#[derive(Clone, Copy)]
pub(crate) struct Environment {
    /// `LACUNA_BUDGET`, in bytes.
    pub(crate) budget: Option<usize>,
    /// `LACUNA_STATS`.
    pub(crate) stats: bool,
    /// `LACUNA_POISON`, if it is there.
    pub(crate) poison: Option<bool>,
}

/// The exit status when a variable makes no sense, as for a command line.
const USAGE: i32 = 2;

/// Reads the variables. A budget that makes no sense ends the process: going on without the bound
/// that somebody asked for would be worse.
pub(crate) fn read() -> Environment {
    let budget = variable(c"LACUNA_BUDGET").map(|text| {
        bytes(text).unwrap_or_else(|| {
            let text = text.escape_ascii();
            let mut line = Line::new();
            let _ =
                writeln!(line, "lacuna: LACUNA_BUDGET={text}: not a number of bytes, like 512M");
            line.print();
            // SAFETY: it does not return.
            unsafe { libc::_exit(USAGE) }
        })
    });
    let stats = variable(c"LACUNA_STATS").is_some_and(is_on);
    Environment { budget, stats, poison: variable(c"LACUNA_POISON").map(is_on) }
}

/// Whether the value of a switch says yes.
fn is_on(text: &[u8]) -> bool {
    !text.is_empty() && text != b"0"
}

fn variable(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: the name is a C string. What getenv(3) tells stays unless the program changes that very
    // variable, which it has hardly begun to run for.
    unsafe {
        let value = libc::getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}

/// `512M` and the like.
fn bytes(text: &[u8]) -> Option<usize> {
    let (digits, unit) = match text {
        [digits @ .., unit] if unit.is_ascii_alphabetic() => (digits, *unit),
        digits => (digits, b'B'),
    };
    let shift = match unit.to_ascii_uppercase() {
        b'B' => 0,
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => return None,
    };
    let digits = core::str::from_utf8(digits).ok().filter(|it| !it.starts_with('+'))?;
    digits.parse::<usize>().ok()?.checked_mul(1 << shift)
}

/// The heap whose statistics are printed at exit.
static PRINTED: AtomicPtr<Core> = AtomicPtr::new(ptr::null_mut());

/// Has a heap's statistics printed when the process exits.
pub(crate) fn print_at_exit(core: NonNull<Core>) {
    extern "C" fn print() {
        // SAFETY: the heap of a global allocator stays.
        if let Some(core) = unsafe { PRINTED.load(Ordering::Relaxed).as_ref() } {
            let mut line = Line::new();
            let _ = writeln!(line, "lacuna: heap \"{}\": {:#}", core.name.as_str(), core.stats());
            line.print();
        }
    }
    PRINTED.store(core.as_ptr(), Ordering::Relaxed);
    // SAFETY: the function is there until the process ends.
    unsafe { libc::atexit(print) };
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_or_refused() {
        assert_eq!(bytes(b"4096"), Some(4096));
        assert_eq!(
            (bytes(b"512M"), bytes(b"2g"), bytes(b"7B")),
            (Some(512 << 20), Some(2 << 30), Some(7))
        );
        for text in ["", "M", "12X", "1.5G", "-1", "+1", "1 G", "99999999999999T", "ten"] {
            assert_eq!(bytes(text.as_bytes()), None, "{text}");
        }
    }
}
