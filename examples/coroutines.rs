//! Coroutines whose stacks lie in an arena: a megabyte is reserved for each, and each pays for the
//! pages that it has touched. A thousand of them wait for their turn in a few dozen megabytes.
//!
//! A fault that grows a stack is resolved on the thread's alternate stack, which threads of Rust's
//! standard library have; `lacuna::check_thread` tells whether the calling one can do it.
//!
//! ```text
//! cargo run --release --example coroutines [coroutines]
//! ```

use corosensei::stack::{MIN_STACK_SIZE, Stack, StackPointer};
use corosensei::{Coroutine, CoroutineResult, Yielder};
use lacuna::Arena;
use std::error::Error;
use std::ops::Range;

/// Reserved for a coroutine. The lowest page is its guard.
const STACK: usize = 1 << 20;

/// Stacks in an arena, one after the other.
struct Stacks {
    arena: Arena,
    taken: usize,
}

/// One of them. The arena must outlive it, as `main` sees to.
struct ArenaStack {
    base: StackPointer,
    limit: StackPointer,
}

impl Stacks {
    fn reserve(count: usize) -> lacuna::Result<Self> {
        let arena = Arena::builder(count * STACK).name("stacks").huge_pages(false).reserve()?;
        Ok(Self { arena, taken: 0 })
    }

    /// The next stack, or `None` if all are taken.
    fn take(&mut self) -> Result<Option<ArenaStack>, Box<dyn Error>> {
        let Range { start, end } = self.taken * STACK..(self.taken + 1) * STACK;
        if end > self.arena.len() {
            return Ok(None);
        }
        self.taken += 1;
        // SAFETY: the offset is within the arena, and nobody has a reference into the guard page.
        let lowest = unsafe { self.arena.as_ptr().add(start) };
        // SAFETY: as above. A touch of the guard is a SIGSEGV, which is none of lacuna's.
        if unsafe { libc::mprotect(lowest.cast(), lacuna::page_size(), libc::PROT_NONE) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let at = |address| StackPointer::new(address).ok_or("no arena lies at 0");
        let limit = at(lowest.expose_provenance())?;
        Ok(Some(ArenaStack { base: at(limit.get() + (end - start))?, limit }))
    }
}

// SAFETY: base and limit are aligned to more than a page and lie within the arena, which `main` drops
// after all coroutines; the lowest page is a guard, and each stack is handed out once.
unsafe impl Stack for ArenaStack {
    fn base(&self) -> StackPointer {
        self.base
    }

    fn limit(&self) -> StackPointer {
        self.limit
    }
}

/// Sums the numbers up to `depth` by recursion, yielding at the bottom, so that all of the stack is in
/// use while others run.
fn sum(depth: usize, yielder: &Yielder<(), ()>) -> usize {
    let frame = std::hint::black_box([depth; 8]);
    match depth {
        0 => {
            yielder.suspend(());
            0
        }
        _ => sum(depth - 1, yielder) + std::hint::black_box(&frame)[depth % 8],
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    const { assert!(STACK >= MIN_STACK_SIZE) };
    let count = match std::env::args().nth(1) {
        Some(count) => count.parse()?,
        None => 1000,
    };
    let mut stacks = Stacks::reserve(count)?;
    lacuna::check_thread()?;

    // Every tenth goes deep, the others stay within their first pages.
    let depth = |index: usize| if index.is_multiple_of(10) { 1000 } else { 10 };
    let mut waiting = Vec::new();
    while let Some(stack) = stacks.take()? {
        let depth = depth(waiting.len());
        let mut coroutine =
            Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| sum(depth, yielder));
        match coroutine.resume(()) {
            CoroutineResult::Yield(()) => waiting.push(coroutine),
            CoroutineResult::Return(_) => return Err("it should wait for its turn".into()),
        }
    }

    // Chunks that were lent to the kernel are charged as a whole until they have been measured.
    let stats = stacks.arena.measure()?;
    println!(
        "{} coroutines wait, with {} MiB of stacks reserved and {} MiB resident, after {} faults",
        waiting.len(),
        stats.reserved_bytes >> 20,
        stats.resident_bytes >> 20,
        stats.faults,
    );
    for (index, mut coroutine) in waiting.into_iter().enumerate() {
        let depth = depth(index);
        match coroutine.resume(()) {
            CoroutineResult::Return(sum) => assert_eq!(sum, depth * (depth + 1) / 2),
            CoroutineResult::Yield(()) => return Err("it should be done".into()),
        }
    }
    println!("all of them have returned the right sum");
    Ok(())
}
