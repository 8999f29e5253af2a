#![doc = include_str!("../README.md")]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("lacuna needs Linux on a 64-bit machine: it is built on userfaultfd(2)");

mod arena;
mod atomic;
mod error;
mod fault;
mod fork;
mod heap;
mod image;
mod lock;
mod page;
mod pool;
mod process;
mod sparse;
mod sys;
pub mod uffd;

#[doc = include_str!("../GUARANTEES.md")]
pub mod guarantees {}

#[doc = include_str!("../UFFDIO.md")]
pub mod uffdio {}

pub use arena::{
    Arena, ArenaBuilder, PageSize, Populated, Replayed, Saved, Stats, Template, Touched, Trace,
};
pub use arena::{check_thread, is_in_front, take_front};
pub use error::{Error, ErrorKind, Operation, Result};
pub use fault::backend::Backend;
pub use fault::decode::Access;
pub use fault::handler::try_handle;
pub use fault::track::Tracking;
pub use fault::violation::{Bound, Violation, ViolationHook, set_violation_hook};
pub use fault::window::Window;
pub use fork::OnFork;
pub use heap::{ClassStats, Heap, HeapBuilder, HeapStats, Lacuna};
pub use image::ImageInfo;
pub use nix::errno::Errno;
pub use page::page_size;
pub use pool::{Instance, Pool, PoolBuilder, PoolStats};
pub use sparse::{PopulatedElements, SparseArray};
/// Failure on purpose, for tests.
#[cfg(lacuna_seam)]
#[doc(hidden)]
pub use sys::seam;
