//! A pool of instances behind a small virtual machine: each request runs in a memory of its own, which
//! starts as the image (program and data), grows while the program runs, and is the image again for the
//! next request.
//!
//! ```text
//! cargo run --release --example instance_pool [requests]
//! ```
//! Two threads serve the requests. Each answer is checked against one computed without the machine; and
//! the program leaves marks in its memory, which no other request may ever see.

#[path = "instance_pool/machine.rs"]
mod machine;
#[path = "instance_pool/program.rs"]
mod program;

use lacuna::{Instance, Pool, Template};
use machine::{Machine, Memory, Trap};
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Bytes of an instance, at most; of these, the image's may be touched at the start.
const RESERVED: usize = 64 << 20;
const THREADS: u64 = 2;

/// A machine's memory: an instance, with each access checked against how far it has grown. Engines keep
/// these two numbers at hand as well.
struct Guest {
    base: *mut u8,
    size: usize,
    instance: Instance,
}

impl Memory for Guest {
    fn size(&self) -> usize {
        self.size
    }

    fn grow_to(&mut self, size: usize) -> Result<(), Trap> {
        // One atomic store.
        self.instance.set_limit(size).map_err(|_| Trap::OutOfMemory)?;
        self.size = self.instance.limit();
        Ok(())
    }

    fn read<const N: usize>(&self, at: usize) -> Result<[u8; N], Trap> {
        self.check::<N>(at)?;
        // SAFETY: the bytes lie before the limit; only this thread accesses the instance, which is
        // released when the request is served.
        Ok(unsafe { self.base.add(at).cast::<[u8; N]>().read_unaligned() })
    }

    fn write<const N: usize>(&mut self, at: usize, bytes: [u8; N]) -> Result<(), Trap> {
        self.check::<N>(at)?;
        // SAFETY: as above.
        unsafe { self.base.add(at).cast::<[u8; N]>().write_unaligned(bytes) };
        Ok(())
    }
}

impl Guest {
    fn new(instance: Instance) -> Self {
        Self { base: instance.as_ptr(), size: instance.limit(), instance }
    }

    fn check<const N: usize>(&self, at: usize) -> Result<(), Trap> {
        match at.checked_add(N) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Trap::OutOfBounds(at)),
        }
    }
}

/// Runs the program for one request, in an instance of its own.
fn serve(pool: &Pool, request: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut guest = Guest::new(pool.acquire()?);
    let (n, slot) = program::input_of(request);
    guest.write(program::N, n.to_ne_bytes())?;
    guest.write(program::SLOT, slot.to_ne_bytes())?;
    Machine::run(&mut guest)?;
    let number = |at| guest.read(at).map(u64::from_ne_bytes);
    let (primes, secret, calls) =
        (number(program::PRIMES)?, number(program::SECRET)?, number(program::CALLS)?);
    guest.instance.release()?;

    let right = program::answer(n, slot);
    if (primes, secret) != right {
        return Err(format!("request {request}: {:?}, not {right:?}", (primes, secret)).into());
    }
    if calls != 1 {
        return Err(format!("request {request} saw the marks of {} others", calls - 1).into());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let requests = std::env::args().nth(1).map_or(Ok(1000), |text| text.parse::<u64>())?;
    let image = program::image();
    println!(
        "image: {} KiB of program and data, instances of {} MiB",
        image.len() >> 10,
        RESERVED >> 20
    );

    let template = Template::bytes(&image)?.shared()?;
    let pool = Pool::builder(template, RESERVED).name("guests").instances(8).limit(image.len());
    let pool = pool.build()?;
    let next = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let work = || -> Result<(), Box<dyn Error + Send + Sync>> {
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    request if request < requests => serve(&pool, request)?,
                    _ => return Ok(()),
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|it| it.join().expect("a thread panicked"))
    })?;
    let time = start.elapsed();
    println!(
        "{requests} requests by {THREADS} threads in {time:.1?}: each answer right, no marks of others"
    );
    println!("pool: {}", pool.stats());
    println!("trimmed: {} KiB given back", pool.trim()? >> 10);
    Ok(())
}
