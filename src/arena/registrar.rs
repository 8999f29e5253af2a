//! The writing side of the registry: one lock, and memory for entries and nodes that is never
//! given back. Entries are reused; nodes stay in the tree. A node is 256 bytes and an entry about
//! 500, so a thousand arenas cost less than a megabyte.

use super::mapping::Mapping;
use crate::Errno;
use crate::atomic::{AtomicU32, Ordering, UnsafeCell};
use crate::error::{Error, Operation, Result};
use crate::fault::REGISTRY;
use crate::fault::region::Region;
use crate::fault::registry::{Entry, Node};
use crate::lock::Mutex;
use crate::sys::pause;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr;

/// What the lock protects: free memory, and the list of all entries.
pub(crate) struct Registrar {
    /// Unused bytes of the last block.
    free: Range<*mut u8>,
    /// The seat made last; each knows the one before.
    seats: Option<&'static Seat>,
    /// The seat vacated last; each knows the one vacated before.
    vacant: Option<&'static Seat>,
}

/// An entry of the registry, in the list of all and, while it has no region, in that of the vacant.
pub(crate) struct Seat {
    pub(crate) entry: Entry<Region>,
    before: Option<&'static Seat>,
    next_vacant: UnsafeCell<Option<&'static Seat>>,
}

// SAFETY: an entry may be shared; the link is touched only under the registrar's lock.
unsafe impl Sync for Seat {}

// SAFETY: the range is memory that only the holder of the lock touches.
unsafe impl Send for Registrar {}

pub(crate) static REGISTRAR: Mutex<Registrar> =
    Mutex::new(Registrar { free: ptr::null_mut()..ptr::null_mut(), seats: None, vacant: None });

/// Bytes asked of the kernel at once; it fills them as they are touched.
const BLOCK: usize = 1 << 20;

impl Registrar {
    /// Makes `region` the one that faults in its `span` of bytes are resolved by.
    pub(crate) fn publish(&mut self, region: Region, span: usize) -> Result<&'static Seat> {
        let addresses = region.base..region.base + span;
        let seat = self.seat().ok_or(Error::os(Operation::Reserve, Errno::ENOMEM))?;
        // SAFETY: a vacant entry is in no slot, so no pin on it holds, and the lock is held.
        seat.entry.value.with_mut(|value| unsafe { *value = Some(region) });
        let mut nodes = || {
            self.allocate::<Node<Region>>().map(|node| {
                // SAFETY: all zeroes is an empty node.
                unsafe { &*node.write(core::mem::zeroed()) }
            })
        };
        if REGISTRY.publish(addresses, &seat.entry, &mut nodes) {
            return Ok(seat);
        }
        // SAFETY: what was published of it is emptied again.
        unsafe { self.vacate(seat) };
        Err(Error::os(Operation::Reserve, Errno::ENOMEM))
    }

    /// Undoes [`publish`](Self::publish). Afterwards no handler looks at the region any more.
    ///
    /// # Safety
    /// `seat` came from `publish`, with this `span`, and is retired once.
    pub(crate) unsafe fn retire(&mut self, seat: &'static Seat, span: usize) {
        // SAFETY: values change only under the lock, which is held.
        let base = seat.entry.value.with(|value| unsafe { (*value).as_ref().map(|it| it.base) });
        if let Some(base) = base {
            REGISTRY.unpublish(base..base + span);
        }
        // SAFETY: it is in no slot any more.
        unsafe { self.vacate(seat) };
    }

    /// Undoes [`publish`](Self::publish) in a process that has inherited the registry in whatever
    /// state it was: no pin can be waited for there, so the seat is not used again.
    pub(crate) fn abandon(&mut self, base: usize, span: usize) {
        REGISTRY.unpublish(base..base + span);
    }

    /// Takes back the pins of the parent's other threads, in a forked child. The gate was closed:
    /// none of them holds.
    pub(crate) fn forget_pins(&self) {
        self.entries().for_each(Entry::forget_pins);
    }

    /// Waits until no pin is left on the entry, and makes its seat vacant.
    ///
    /// # Safety
    /// The entry is in no slot.
    unsafe fn vacate(&mut self, seat: &'static Seat) {
        while !seat.entry.is_drained() {
            pause(10_000);
        }
        // SAFETY: drained, and in no slot: nobody reads the value; the lock is held for the link.
        unsafe {
            seat.entry.value.with_mut(|value| *value = None);
            seat.next_vacant.with_mut(|next| *next = self.vacant);
        }
        self.vacant = Some(seat);
    }

    /// A seat without a region: one that was vacated, or a new one.
    fn seat(&mut self) -> Option<&'static Seat> {
        if let Some(seat) = self.vacant {
            // SAFETY: the lock is held.
            self.vacant = seat.next_vacant.with(|next| unsafe { *next });
            return Some(seat);
        }
        let seat = Seat {
            entry: Entry { pins: AtomicU32::new(0), value: UnsafeCell::new(None) },
            before: self.seats,
            next_vacant: UnsafeCell::new(None),
        };
        let seat = self.allocate::<Seat>()?.write(seat);
        self.seats = Some(seat);
        Some(seat)
    }

    /// All entries, published or not.
    fn entries(&self) -> impl Iterator<Item = &'static Entry<Region>> + use<> {
        core::iter::successors(self.seats, |seat| seat.before).map(|seat| &seat.entry)
    }

    /// The regions that are published.
    pub(crate) fn regions(&self) -> impl Iterator<Item = &Region> {
        // SAFETY: values change only under the lock, which is held while `self` is borrowed.
        self.entries().filter_map(|entry| entry.value.with(|value| unsafe { (*value).as_ref() }))
    }

    /// Memory for a `T`, for ever.
    fn allocate<T>(&mut self) -> Option<&'static mut MaybeUninit<T>> {
        let padding = self.free.start.align_offset(align_of::<T>());
        if (self.free.end.addr() - self.free.start.addr()) < padding + size_of::<T>() {
            let block = Mapping::zeroed(BLOCK).ok()?;
            let base = block.base().as_ptr();
            core::mem::forget(block);
            // SAFETY: the end of the block that was just mapped.
            self.free = base..unsafe { base.add(BLOCK) };
            return self.allocate();
        }
        // SAFETY: checked to fit; from here on these bytes are the caller's alone.
        unsafe {
            let start = self.free.start.add(padding);
            self.free.start = start.add(size_of::<T>());
            Some(&mut *start.cast())
        }
    }
}

/// Waits until no thread is inside a fault or changing a chunk, and keeps others out until
/// [`open_gate`]: after it, every page, bit and counter is in step.
///
/// Threads that come meanwhile wait, except the caller, which may run other code (the fork hooks of
/// others) that touches arenas.
pub(crate) fn close_gate(registrar: &Registrar, thread: u32) {
    // Relaxed: the read-modify-write in `is_drained` hands it to whoever pins after.
    REGISTRY.gate.store(thread, Ordering::Relaxed);
    for entry in registrar.entries() {
        while !entry.is_drained() {
            pause(10_000);
        }
    }
}

/// Undoes [`close_gate`].
pub(crate) fn open_gate() {
    REGISTRY.gate.store(0, Ordering::Release);
}
