//! Guests that mean no good: each must trap, and harm nobody.

use crate::host::{Guest, Host, INITIAL};
use crate::memory::RESERVED;
use wasmtime::{Result, Trap, ensure};

/// Accesses that touch `end`, the first byte past the memory, or lie far behind it.
fn past(end: u32) -> impl Iterator<Item = (&'static str, u32)> {
    let near = ["load", "store", "fill", "copy"].into_iter();
    let near =
        near.flat_map(move |it| [(it, end - 1), (it, end - 3), (it, end), (it, u32::MAX - 2)]);
    let far = [("load_byte", end), ("load_at_64M", 4), ("load_at_64M", u32::MAX)];
    near.chain(far).chain([("load_far", 0), ("load_far", u32::MAX)])
}

fn must_trap(guest: &mut Guest, (what, at): (&str, u32)) -> Result<()> {
    let result = guest.call(what, at);
    let trap = result.as_ref().err().and_then(|error| error.downcast_ref::<Trap>());
    ensure!(trap == Some(&Trap::MemoryOutOfBounds), "{what} at {at:#x}: {result:?}");
    Ok(())
}

/// Tells how many accesses trapped. Memory is grown between, and what was past it is then within.
pub fn check(host: &Host) -> Result<usize> {
    let mut trapped = 0;
    let mut guest = host.guest()?;
    let mut end = INITIAL as u32;
    for pages in [0, 1, 100] {
        ensure!(guest.call("grow", pages)? == end >> 16, "memory.grow told another size");
        ensure!(pages == 0 || guest.call("load", end)? == 0, "memory did not grow by zeroes");
        end += pages << 16;
        ensure!(guest.call("load_byte", end - 1)? == 0, "the last byte is not there");
        for access in past(end) {
            must_trap(&mut guest, access)?;
            trapped += 1;
        }
        ensure!(guest.call("load_byte", end - 1)? == 0, "what trapped has written");
    }
    // As far as it goes, and not farther.
    let rest = (RESERVED as u32 - end) >> 16;
    ensure!(guest.call("grow", rest + 1)? == u32::MAX, "memory grew past its maximum");
    ensure!(guest.call("grow", rest)? == end >> 16, "memory did not grow to its maximum");
    ensure!(guest.call("grow", 1)? == u32::MAX, "memory grew past its maximum");
    guest.call("store", RESERVED as u32 - 8)?;
    for access in past(RESERVED as u32) {
        must_trap(&mut guest, access)?;
        trapped += 1;
    }
    drop(guest);
    // Whoever has the memory next finds nothing of this.
    host.serve(0)?;
    let mut guest = host.guest()?;
    guest.call("grow", (RESERVED as u32 - INITIAL as u32) >> 16)?;
    ensure!(guest.call("load", RESERVED as u32 - 8)? == 0, "marks of another guest");
    Ok(trapped)
}
