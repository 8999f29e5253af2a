//! A global allocator that is whichever the environment says: one more branch for each of them.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::CStr;
use std::sync::atomic::{AtomicU8, Ordering};

pub const VARIABLE: &str = "ALLOCATOR";

/// The allocators; the first is what the others are compared with.
pub const NAMES: [&str; 5] = ["lacuna", "mimalloc", "jemalloc", "snmalloc", "system"];

static LACUNA: lacuna::Lacuna = lacuna::Lacuna::new();

/// The number of an allocator plus one; 0 before the environment was asked.
pub struct Switch(AtomicU8);

impl Switch {
    pub const fn new() -> Self {
        Self(AtomicU8::new(0))
    }

    #[inline(always)]
    fn chosen(&self) -> u8 {
        match self.0.load(Ordering::Relaxed) {
            0 => self.choose(),
            chosen => chosen,
        }
    }

    #[cold]
    fn choose(&self) -> u8 {
        // SAFETY: the name is a C string, and nobody changes the environment.
        let value = unsafe {
            let value = libc::getenv(c"ALLOCATOR".as_ptr());
            if value.is_null() { c"system" } else { CStr::from_ptr(value) }
        };
        let number = NAMES.iter().position(|name| name.as_bytes() == value.to_bytes());
        let chosen = number.map_or(NAMES.len(), |number| number + 1) as u8;
        self.0.store(chosen, Ordering::Relaxed);
        chosen
    }
}

// SAFETY: all calls go to the same allocator.
unsafe impl GlobalAlloc for Switch {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises; so below.
        unsafe {
            match self.chosen() {
                1 => LACUNA.alloc(layout),
                2 => mimalloc::MiMalloc.alloc(layout),
                3 => tikv_jemallocator::Jemalloc.alloc(layout),
                4 => snmalloc_rs::SnMalloc.alloc(layout),
                _ => System.alloc(layout),
            }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe {
            match self.chosen() {
                1 => LACUNA.dealloc(block, layout),
                2 => mimalloc::MiMalloc.dealloc(block, layout),
                3 => tikv_jemallocator::Jemalloc.dealloc(block, layout),
                4 => snmalloc_rs::SnMalloc.dealloc(block, layout),
                _ => System.dealloc(block, layout),
            }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        unsafe {
            match self.chosen() {
                1 => LACUNA.alloc_zeroed(layout),
                2 => mimalloc::MiMalloc.alloc_zeroed(layout),
                3 => tikv_jemallocator::Jemalloc.alloc_zeroed(layout),
                4 => snmalloc_rs::SnMalloc.alloc_zeroed(layout),
                _ => System.alloc_zeroed(layout),
            }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe {
            match self.chosen() {
                1 => LACUNA.realloc(block, layout, size),
                2 => mimalloc::MiMalloc.realloc(block, layout, size),
                3 => tikv_jemallocator::Jemalloc.realloc(block, layout, size),
                4 => snmalloc_rs::SnMalloc.realloc(block, layout, size),
                _ => System.realloc(block, layout, size),
            }
        }
    }
}
