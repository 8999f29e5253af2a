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

/// The backend that the environment names.
fn named() -> Result<Option<Backend>> {
    let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
    let known = [Backend::Userfaultfd, Backend::Mprotect];
    match known.into_iter().find(|backend| value == backend.name()) {
        Some(backend) => Ok(Some(backend)),
        None if value.is_empty() => Ok(None),
        None => Err(Error::new(Operation::Reserve, ErrorKind::UnknownBackend)),
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
