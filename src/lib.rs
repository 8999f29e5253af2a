//! placeholder

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("lacuna needs Linux on a 64-bit machine: it is built on userfaultfd(2)");

mod atomic;
mod error;
mod page;
pub mod uffd;

pub use error::{Error, ErrorKind, Operation, Result};
pub use nix::errno::Errno;
pub use page::page_size;
