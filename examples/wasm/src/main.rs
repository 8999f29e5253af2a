//! WebAssembly on a [`lacuna::Pool`]: a guest that counts words runs each request in a memory of its own,
//! which has the 16 MiB that the guest was taught before, and grows.
//!
//! ```text
//! cd examples/wasm && cargo run --release [--quick]
//! ```
//! The guest is run once, and taught; its memory then is the pool's image. Each request gets an instance
//! whose memory has it already. No module has data that would have to be copied in: only what is in
//! memory is kept, not globals nor tables, of which this guest has none.
//!
//! wasmtime's own memories do the same requests in turn, by threads as many. There the image is the
//! module's data, which wasmtime maps copy-on-write. Each answer is checked.

mod host;
mod hostile;
mod memory;
mod rounds;
mod words;

use host::{Host, INITIAL};
use lacuna::{Pool, Template};
use memory::{Creator, RESERVED};
use std::sync::Arc;
use std::time::Instant;
use wasmtime::{
    Config, Enabled, InstanceAllocationStrategy, PoolingAllocationConfig, Result, ensure,
};

/// Guests at a time, at most.
const INSTANCES: usize = 8;

/// Bytes of its memory that a guest that is released keeps, to be brought back in place: here and there.
const KEPT: usize = 1 << 20;

/// The guest's memory after it was taught; it is run by an engine with memories of wasmtime's.
fn image(guest: &[u8]) -> Result<Vec<u8>> {
    let teacher = Host::new("teacher", &Config::new(), guest)?;
    let mut guest = teacher.guest()?;
    guest.learn()?;
    Ok(guest.memory.data(&guest.store).to_vec())
}

/// The guest with an image as its data: one more section behind the others.
fn with_data(guest: &[u8], image: &[u8]) -> Vec<u8> {
    fn leb128(mut number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    }
    // One segment, for the only memory, at `i32.const 0`.
    let mut data = vec![1, 0, 0x41, 0, 0x0B];
    data.extend(leb128(image.len()));
    data.extend(image);
    const DATA_SECTION: u8 = 11;
    [guest, &[DATA_SECTION], &leb128(data.len()), &data].concat()
}

fn pooling() -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(INSTANCES as u32).total_memories(INSTANCES as u32);
    pool.max_memory_size(RESERVED).linear_memory_keep_resident(KEPT).pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// On demand, but with addresses compared as on a pool of lacuna's: what that costs.
fn checked() -> Config {
    let mut config = Config::new();
    config.signals_based_traps(false);
    config
}

/// A guest too many is an error, and not for long.
fn check_exhaustion(host: &Host) -> Result<()> {
    let guests = (0..INSTANCES).map(|_| host.guest()).collect::<Result<Vec<_>>>()?;
    ensure!(host.guest().is_err(), "there is one guest too many");
    drop(guests);
    host.guest().map(drop)
}

fn main() -> Result<()> {
    let quick = std::env::args().any(|it| it == "--quick");
    let guest = wat::parse_str(include_str!("guest.wat"))?;
    let start = Instant::now();
    let image = image(&guest)?;
    ensure!(image.len() == INITIAL, "the guest grew while it was taught");
    println!("image: {} words in {} MiB, {:.0?}", words::WORDS, INITIAL >> 20, start.elapsed());

    let pool = Pool::builder(Template::bytes(&image)?.shared()?, RESERVED).name("guests");
    let pool = pool.instances(INSTANCES).limit(INITIAL).keep_resident(KEPT).build()?;
    let mut config = memory::config();
    config.with_host_memory(Arc::new(Creator(pool.clone())));
    let image = with_data(&guest, &image);
    let hosts = [
        Host::new("lacuna::Pool", &config, &guest)?,
        Host::new("wasmtime, pooling", &pooling(), &image)?,
        Host::new("wasmtime, on demand", &Config::new(), &image)?,
        Host::new("the same, checked", &checked(), &image)?,
    ];

    for host in &hosts {
        println!("{}: {} accesses out of bounds trapped", host.name, hostile::check(host)?);
    }
    check_exhaustion(&hosts[0])?;
    rounds::run(&hosts, if quick { (3, 200) } else { (20, 2000) })?;
    println!("pool: {}", pool.stats());
    ensure!(pool.stats().in_use == 0, "guests are left");
    println!("trimmed: {} KiB given back", pool.trim()? >> 10);
    println!("all answers right, no marks of other requests");
    Ok(())
}
