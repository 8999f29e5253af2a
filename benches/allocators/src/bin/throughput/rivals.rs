//! The allocators, and how to run something with one of them.

use crate::shifting::shifting;
use malloc_bench_rs::{Config, Workload};
use std::alloc::{GlobalAlloc, Layout, System};

/// Their names; the first is what the others are compared with.
pub const RIVALS: &[&str] = &["lacuna", "mimalloc", "jemalloc", "snmalloc", "system"];

/// Whoever builds from elsewhere would measure snmalloc with its assertions.
const _: &str = env!("CXXFLAGS", "run cargo in benches/allocators: it needs .cargo/config.toml");

static LACUNA: lacuna::Lacuna = lacuna::Lacuna::new();

/// lacuna's static as a value, which the harness wants.
#[derive(Clone, Copy)]
struct Lacuna;

// SAFETY: as for what it stands for.
unsafe impl GlobalAlloc for Lacuna {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises; so below.
        unsafe { LACUNA.alloc(layout) }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { LACUNA.dealloc(block, layout) }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        unsafe { LACUNA.realloc(block, layout, size) }
    }
}

/// Runs a workload, and tells how many millions of operations a second were done.
pub fn run(rival: &str, workload: &str, threads: usize, steps: usize) -> f64 {
    match rival {
        "lacuna" => with(|| Lacuna, workload, threads, steps),
        "mimalloc" => with(|| mimalloc::MiMalloc, workload, threads, steps),
        "jemalloc" => with(|| tikv_jemallocator::Jemalloc, workload, threads, steps),
        "snmalloc" => with(|| snmalloc_rs::SnMalloc, workload, threads, steps),
        _ => with(|| System, workload, threads, steps),
    }
}

fn with<A>(make: fn() -> A, workload: &str, threads: usize, steps: usize) -> f64
where
    A: GlobalAlloc + Send + Sync + 'static,
{
    let kind = match workload {
        "larson" => Workload::Larson,
        "mstress" => Workload::Mstress,
        _ => return shifting(&make(), threads, steps),
    };
    let config =
        Config { threads, steps_per_thread: steps, working_set: 1024, mstress_blocks: 512 };
    malloc_bench_rs::run(kind, &config, make) / 1e6
}
