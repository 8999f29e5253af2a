//! The atomics that lock-free code uses, from one place: `tests/loom.rs` compiles the same source
//! files with loom's types under this name.

pub(crate) use core::cell::UnsafeCell;
pub(crate) use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
