//! Making a heap's core, in a mapping of its own.

use super::cache::Cache;
use super::core::{Common, Core, Counts, Shared};
use super::pages::Pages;
use super::table::Table;
use super::thread;
use crate::arena::Mapping;
use crate::atomic::{AtomicBool, AtomicU64};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::ledger::Ledger;
use crate::fault::region::Name;
use crate::fork::{self, Hooks, Layer};
use crate::lock::Mutex;
use crate::page::CHUNK;
use core::ptr::NonNull;

/// Threads that may have a cache in a heap at the same time; others share one.
const CACHES: usize = 1 << 14;

/// The part of a reservation that a heap gives blocks of, and the books they are charged in.
pub(crate) struct Site {
    /// First byte, aligned to a chunk.
    pub(crate) base: usize,
    pub(crate) len: usize,
    /// In pages.
    pub(crate) budget: u64,
    pub(crate) page_shift: u32,
    /// The books of an arena; the heap keeps its own if there are none.
    pub(crate) ledger: Option<NonNull<Ledger>>,
    pub(crate) name: Name,
    /// Whether freed large blocks are put in quarantine.
    pub(crate) poisons: bool,
}

/// What lies at the start of the mapping.
#[repr(C, align(128))]
struct Head {
    core: Core,
    ledger: Ledger,
}

/// A fork copies heaps while nobody changes them. Blocks in the caches of the parent's other threads
/// stay theirs, and so out of use in the child.
static HOOKS: Hooks = Hooks {
    before: || {
        thread::lock_heaps();
        true
    },
    in_parent: thread::unlock_heaps,
    in_child: thread::unlock_heaps_in_child,
};

/// Makes the core of a heap, and the mapping that it lies in, which must outlive it.
///
/// # Safety
/// The site is readable and writable, zeroed, private memory that the kernel fills in small pages,
/// nobody else's, and outlives the core, as do its books.
pub(crate) unsafe fn found(site: &Site, is_home: bool) -> Result<(NonNull<Core>, Mapping)> {
    fork::install(Layer::Heaps, &HOOKS)
        .map_err(|errno| Error::os(Operation::InstallForkHooks, errno))?;
    let chunks = site.len / CHUNK;
    if chunks == 0 {
        return Err(Error::new(Operation::Heap, ErrorKind::TooShort).value(site.len));
    }
    let caches = size_of::<Head>() + Table::size(chunks).next_multiple_of(align_of::<Cache>());
    let mapping = Mapping::zeroed(caches + CACHES * size_of::<Cache>())?;
    let start = mapping.base().as_ptr();
    let first_cache = start.expose_provenance() + caches;
    let all_caches = first_cache..first_cache + CACHES * size_of::<Cache>();
    let head = start.cast::<Head>();
    // SAFETY: the parts lie one after another in the mapping, which is aligned to a page, zeroed, and
    // nobody else's.
    let core = unsafe {
        let table = Table::new(site.base, chunks, start.add(size_of::<Head>()));
        let own = &raw mut (*head).ledger;
        own.write(Ledger::new());
        let ledger = site.ledger.map_or(own.cast_const(), |it| it.as_ptr());
        let core = &raw mut (*head).core;
        core.write(Core {
            id: thread::new_id(),
            seat: 0,
            is_home,
            name: site.name,
            poisons: site.poisons,
            table,
            pages: Pages::new(ledger, site.budget, site.page_shift),
            shared: Mutex::new(Shared::new(table, all_caches.step_by(size_of::<Cache>()))),
            large: Counts::new(),
            large_bytes: AtomicU64::new(0),
            stayed: AtomicBool::new(false),
            common: Mutex::new(Common(Cache::new(core, table))),
        });
        let too_many = Error::new(Operation::Heap, ErrorKind::TooManyHeaps);
        (*core).seat = thread::enter(core).ok_or(too_many)?;
        NonNull::new_unchecked(core)
    };
    Ok((core, mapping))
}
