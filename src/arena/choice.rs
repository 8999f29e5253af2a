//! Which backend an arena gets.

use super::{engine, inherit, mprotect};
use crate::atomic::{AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use nix::errno::Errno;

/// The environment variable that names a backend.
const VARIABLE: &str = "LACUNA_BACKEND";

/// 1 once userfaultfd was found to be denied; that does not change.
static DENIED: AtomicU32 = AtomicU32::new(0);

/// Starts the backend that was asked for, by the program or else by the environment; without either,
/// the better one of those that the system allows.
pub(super) fn start(asked: Option<Backend>) -> Result<Backend> {
    if engine::is_started() || mprotect::is_started() {
        inherit::check(Operation::Reserve)?;
    }
    let wanted = match asked {
        None => named()?,
        asked => asked,
    };
    if let Some(backend) = wanted {
        start_one(backend)?;
        return Ok(backend);
    }
    // Relaxed: whoever does not know yet finds out by itself.
    if DENIED.load(Ordering::Relaxed) == 0 {
        match start_one(Backend::Userfaultfd) {
            Err(error) if is_denied(&error) => DENIED.store(1, Ordering::Relaxed),
            result => return result.map(|()| Backend::Userfaultfd),
        }
    }
    start_one(Backend::Mprotect)?;
    Ok(Backend::Mprotect)
}

fn start_one(backend: Backend) -> Result<()> {
    match backend {
        Backend::Userfaultfd => engine::start(),
        Backend::Mprotect => mprotect::start(),
    }
}

/// What the environment names, once it was read: [`UNREAD`], [`NOTHING`], [`UNKNOWN`], or the place of a
/// backend in [`KNOWN`]. It is read once: the lock that std has for it can be copied by a fork while
/// somebody holds it.
static NAMED: AtomicU32 = AtomicU32::new(UNREAD);
const UNREAD: u32 = 0;
const NOTHING: u32 = 1;
const UNKNOWN: u32 = 2;
const FIRST: u32 = 3;
const KNOWN: [Backend; 2] = [Backend::Userfaultfd, Backend::Mprotect];

/// The backend that the environment names.
fn named() -> Result<Option<Backend>> {
    if NAMED.load(Ordering::Relaxed) == UNREAD {
        let named = match std::env::var_os(VARIABLE) {
            None => NOTHING,
            Some(value) if value.is_empty() => NOTHING,
            Some(value) => match KNOWN.iter().position(|backend| value == backend.name()) {
                Some(place) => FIRST + place as u32,
                None => UNKNOWN,
            },
        };
        // Relaxed: whoever reads it as well finds the same.
        NAMED.store(named, Ordering::Relaxed);
    }
    match NAMED.load(Ordering::Relaxed) {
        NOTHING => Ok(None),
        UNKNOWN => Err(Error::new(Operation::Reserve, ErrorKind::UnknownBackend)),
        place => Ok(KNOWN.get((place - FIRST) as usize).copied()),
    }
}

/// Whether the system does not allow userfaultfd, or not as we need it; anything else, such as no
/// descriptor being left, is an error to report.
fn is_denied(error: &Error) -> bool {
    match error.operation() {
        Operation::Open | Operation::Api => matches!(
            (error.kind(), error.errno()),
            (ErrorKind::Unsupported, _)
                | (_, Some(Errno::EPERM | Errno::EACCES | Errno::ENOSYS | Errno::EINVAL))
        ),
        Operation::Advise => error.kind() == ErrorKind::Unsupported,
        _ => false,
    }
}
