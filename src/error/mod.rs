//! The one error type: which operation failed, on what, why, and what can be done about it.

mod hint;
mod kind;
mod operation;

use core::fmt;
use nix::errno::Errno;

pub use kind::ErrorKind;
pub use operation::Operation;

/// What an operation failed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Subject {
    #[default]
    Nothing,
    /// A number, of bytes mostly.
    Value(usize),
    /// Bits of a feature word.
    Bits(u64),
    /// Byte addresses or byte offsets.
    Range { start: usize, end: usize },
    /// A thing with a name.
    Named(&'static str),
}

/// A failed operation of lacuna.
///
/// It is `Copy`, never allocates, and names the operation, what it worked on, the cause and, for
/// the causes that a user can do something about, what that is.
///
/// ```
/// let error = lacuna::Arena::builder(0).reserve().unwrap_err();
/// assert_eq!(error.kind(), lacuna::ErrorKind::ZeroLength);
/// assert_eq!(error.to_string(), "reserve an arena (0): the length is zero");
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Error {
    operation: Operation,
    kind: ErrorKind,
    errno: Option<Errno>,
    subject: Subject,
}

/// What fallible operations of lacuna return.
pub type Result<T, E = Error> = core::result::Result<T, E>;

impl Error {
    pub(crate) const fn new(operation: Operation, kind: ErrorKind) -> Self {
        Self { operation, kind, errno: None, subject: Subject::Nothing }
    }

    pub(crate) const fn os(operation: Operation, errno: Errno) -> Self {
        Self { operation, kind: ErrorKind::Os, errno: Some(errno), subject: Subject::Nothing }
    }

    pub(crate) const fn value(mut self, value: usize) -> Self {
        self.subject = Subject::Value(value);
        self
    }

    pub(crate) const fn bits(mut self, bits: u64) -> Self {
        self.subject = Subject::Bits(bits);
        self
    }

    pub(crate) const fn range(mut self, start: usize, end: usize) -> Self {
        self.subject = Subject::Range { start, end };
        self
    }

    pub(crate) const fn named(mut self, name: &'static str) -> Self {
        self.subject = Subject::Named(name);
        self
    }

    /// The operation that failed.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// Why it failed.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error number of the system call that failed, if one did.
    #[must_use]
    pub const fn errno(&self) -> Option<Errno> {
        self.errno
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation.name())?;
        match self.subject {
            Subject::Nothing => {}
            Subject::Value(value) => write!(f, " ({value})")?,
            Subject::Bits(bits) => write!(f, " ({bits:#x})")?,
            Subject::Named(name) => write!(f, " ({name})")?,
            Subject::Range { start, end } => write!(f, " ({start:#x}..{end:#x})")?,
        }
        match (self.kind, self.errno) {
            (ErrorKind::Os, Some(errno)) => write!(f, ": {} ({errno:?})", errno.desc())?,
            (kind, Some(errno)) => write!(f, ": {} ({errno:?})", kind.text())?,
            (kind, None) => write!(f, ": {}", kind.text())?,
        }
        match self.hint() {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({self})")
    }
}

impl core::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match (error.kind, error.errno) {
            (_, Some(errno)) => Self::from_raw_os_error(errno as i32).kind(),
            (ErrorKind::BudgetExhausted | ErrorKind::NoHugePages, None) => Io::OutOfMemory,
            (ErrorKind::PoolExhausted, None) => Io::WouldBlock,
            (
                ErrorKind::Unsupported
                | ErrorKind::NeedsUserfaultfd
                | ErrorKind::ForkedWithoutHooks
                | ErrorKind::NotRearmed,
                None,
            ) => Io::Unsupported,
            (ErrorKind::NotInherited, None) => Io::PermissionDenied,
            (ErrorKind::TraceDamaged | ErrorKind::TraceVersion, None) => Io::InvalidData,
            _ => Io::InvalidInput,
        };
        Self::new(kind, error)
    }
}
