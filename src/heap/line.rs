//! Text for stderr, made without allocating.

use core::fmt::{self, Write};

/// Text in place, cut where it does not fit.
pub(crate) struct Line {
    bytes: [u8; 4096],
    len: usize,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 4096], len: 0 }
    }

    /// Writes it to stderr.
    pub(crate) fn print(&self) {
        // SAFETY: the bytes are valid. If they cannot be written, nobody can be told.
        unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len) };
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - self.len;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
        Ok(())
    }
}
