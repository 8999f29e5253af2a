//! What a pool and its instances have in common.

use super::shelf::{Shelf, of_thread};
use super::stats::PoolStats;
use crate::arena::{Arena, ArenaBuilder};
use crate::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::sys::pause;
use core::ptr;

/// The arenas of a pool, and which of them are idle.
pub(super) struct Inner {
    /// What each arena is to be; the name apart, since that is borrowed.
    builder: ArenaBuilder<'static>,
    name: Box<str>,
    /// The limit of an instance when it is acquired, in bytes.
    limit: usize,
    /// The arenas that were made, by number; each stays until the pool goes. Null where there is none.
    arenas: Box<[AtomicPtr<Arena>]>,
    /// The number below each, in whatever stack it is.
    links: Box<[AtomicU32]>,
    /// How many numbers are given out.
    made: AtomicU32,
    /// Numbers given out whose arena could not be made.
    unmade: Shelf,
    /// Idle ones, by the thread that released them.
    shelves: Box<[Shelf]>,
    /// Idle ones without memory.
    cold: Shelf,
    /// Released ones that could not be reset.
    spoilt: Shelf,
    /// Threads that hold one idle instance each, to trim it.
    trimming: AtomicU32,
}

/// Shelves at most: what more threads release is on the shelves of others.
const SHELVES: usize = 64;

/// How often a thread looks again for an instance that is being trimmed, 10 microseconds apart.
const ATTEMPTS: u32 = 1000;

impl Inner {
    pub(super) fn new(builder: &ArenaBuilder<'_>, most: u32) -> Result<Self> {
        let first = Box::new(builder.clone().reserve()?);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let inner = Self {
            builder: builder.clone().unnamed(),
            name: first.name().into(),
            limit: first.limit(),
            arenas: (0..most).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            links: (0..most).map(|_| AtomicU32::new(0)).collect(),
            made: AtomicU32::new(1),
            unmade: Shelf::new(),
            shelves: (0..threads.clamp(1, SHELVES)).map(|_| Shelf::new()).collect(),
            cold: Shelf::new(),
            spoilt: Shelf::new(),
            trimming: AtomicU32::new(0),
        };
        inner.arenas[0].store(Box::into_raw(first), Ordering::Release);
        inner.cold.push(&inner.links, 0);
        Ok(inner)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The arena of a number, if it was made.
    pub(super) fn arena(&self, number: u32) -> Option<&Arena> {
        // Acquire pairs with the Release where it is stored: the arena is whole.
        let arena = self.arenas.get(number as usize)?.load(Ordering::Acquire);
        // SAFETY: null, or a box's, which is there for as long as `self`.
        unsafe { arena.as_ref() }
    }

    /// The number of an arena that holds the image, for the caller alone.
    pub(super) fn take(&self) -> Result<u32> {
        let mine = self.shelf();
        let number = match self.shelves[mine].pop(&self.links) {
            Some(number) => number,
            None => self.find(mine)?,
        };
        // Relaxed: statistics.
        self.shelves[mine].acquired.fetch_add(1, Ordering::Relaxed);
        Ok(number)
    }

    /// Brings an arena back to the image, and has it idle.
    ///
    /// # Safety
    /// The number is the caller's, and nobody accesses the arena.
    pub(super) unsafe fn put(&self, number: u32) -> Result<()> {
        let mine = self.shelf();
        // SAFETY: as the caller promises.
        let result = unsafe { self.clean(number) };
        match result {
            Ok(()) => self.shelves[mine].push(&self.links, number),
            Err(_) => self.spoil(number),
        }
        // Relaxed: statistics.
        self.shelves[mine].released.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Brings an arena back to the image and the initial limit, without poison, recording or checkpoint.
    ///
    /// # Safety
    /// As for `put`.
    unsafe fn clean(&self, number: u32) -> Result<()> {
        let Some(arena) = self.arena(number) else { return Ok(()) };
        if arena.limit() != self.limit {
            arena.set_limit(self.limit)?;
        }
        // Before the content: a checkpoint would keep what is reset.
        arena.forget_former_user()?;
        // SAFETY: as the caller promises; every access is through raw pointers, whose users answer for
        // what they read.
        unsafe { arena.reset() }
    }

    fn shelf(&self) -> usize {
        of_thread() % self.shelves.len()
    }

    /// An arena from elsewhere than the thread's own shelf, or a new one.
    #[cold]
    fn find(&self, mine: usize) -> Result<u32> {
        for _ in 0..ATTEMPTS {
            let before = self.states();
            if let Some(number) = self.find_idle(mine) {
                return Ok(number);
            }
            if let Some(number) = self.number_for_new() {
                return self.make(number);
            }
            if let Some(number) = self.repair() {
                return Ok(number);
            }
            // Acquire: read before the stacks are looked at once more. If none of them has changed while
            // each was found empty, all were at this moment, when nobody was trimming.
            let trimming = self.trimming.load(Ordering::Acquire);
            match before.iter().copied().eq(self.stacks().map(Shelf::state)) {
                _ if trimming > 0 => pause(10_000),
                true => break,
                false => {}
            }
        }
        Err(Error::new(Operation::Acquire, ErrorKind::PoolExhausted).value(self.arenas.len()))
    }

    /// An idle arena of another thread's, or one without memory.
    fn find_idle(&self, mine: usize) -> Option<u32> {
        let count = self.shelves.len();
        let others = (0..count).map(|step| &self.shelves[(mine + step) % count]);
        others.chain([&self.cold]).find_map(|shelf| shelf.pop(&self.links))
    }

    fn stacks(&self) -> impl Iterator<Item = &Shelf> {
        self.shelves.iter().chain([&self.cold, &self.spoilt, &self.unmade])
    }

    fn states(&self) -> Vec<u64> {
        self.stacks().map(Shelf::state).collect()
    }

    /// A number that has no arena yet.
    fn number_for_new(&self) -> Option<u32> {
        self.unmade.pop(&self.links).or_else(|| {
            let most = self.arenas.len() as u32;
            let next = |made: u32| (made < most).then_some(made + 1);
            // Relaxed: a count; nothing else hangs on it.
            self.made.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()
        })
    }

    /// Makes an arena.
    fn make(&self, number: u32) -> Result<u32> {
        match self.builder.clone().name(&self.name).reserve() {
            Ok(arena) => {
                let arena = Box::into_raw(Box::new(arena));
                self.arenas[number as usize].store(arena, Ordering::Release);
                Ok(number)
            }
            Err(error) => {
                self.unmade.push(&self.links, number);
                Err(error)
            }
        }
    }

    /// Keeps an arena that could not be reset from being used.
    fn spoil(&self, number: u32) {
        self.spoilt.push(&self.links, number);
        // Relaxed: statistics.
        self.spoilt.released.fetch_add(1, Ordering::Relaxed);
    }

    /// One that could not be reset before, and can be now.
    fn repair(&self) -> Option<u32> {
        let number = self.spoilt.pop(&self.links)?;
        // Relaxed: statistics.
        self.spoilt.acquired.fetch_add(1, Ordering::Relaxed);
        // SAFETY: it was put here by its owner, and taken out by this thread.
        let result = unsafe { self.clean(number) };
        if result.is_err() {
            self.spoil(number);
        }
        result.ok().map(|()| number)
    }

    /// Gives the memory of idle arenas back; tells how many bytes.
    pub(super) fn trim(&self) -> Result<usize> {
        let mut bytes = 0;
        for shelf in &self.shelves {
            loop {
                // Relaxed: `pop` publishes it to whoever finds the shelf empty.
                self.trimming.fetch_add(1, Ordering::Relaxed);
                let number = shelf.pop(&self.links);
                let result = number.map(|number| self.empty(number));
                // Release pairs with the Acquire in `find`.
                self.trimming.fetch_sub(1, Ordering::Release);
                match result {
                    Some(result) => bytes += result?,
                    None => break,
                }
            }
        }
        Ok(bytes)
    }

    /// Empties an idle arena of the caller's, and puts it among the cold ones.
    fn empty(&self, number: u32) -> Result<usize> {
        let Some(arena) = self.arena(number) else { return Ok(0) };
        let before = arena.stats().resident_bytes;
        // SAFETY: it was idle, so nobody accesses it, and is the caller's.
        let result = unsafe { arena.discard(0..arena.len()) };
        match result {
            Ok(()) => self.cold.push(&self.links, number),
            Err(_) => self.spoil(number),
        }
        result.map(|()| before - arena.stats().resident_bytes)
    }

    pub(super) fn stats(&self) -> PoolStats {
        // Relaxed: statistics.
        let count = |shelf: &Shelf| {
            (shelf.released.load(Ordering::Relaxed), shelf.acquired.load(Ordering::Relaxed))
        };
        let add = |(a, b): (u64, u64), (c, d)| (a + c, b + d);
        let (released, acquired) = self.shelves.iter().map(count).fold((0, 0), add);
        let (spoilt, repaired) = count(&self.spoilt);
        let mut stats = PoolStats { instances: self.arenas.len(), acquired, ..Default::default() };
        for arena in (0..self.made.load(Ordering::Relaxed)).filter_map(|it| self.arena(it)) {
            let arena = arena.stats();
            stats.made += 1;
            stats.resident_bytes += arena.resident_bytes;
            stats.lent_bytes += arena.lent_bytes;
        }
        stats.in_use = (acquired.saturating_sub(released) as usize).min(stats.made);
        let spoilt = spoilt.saturating_sub(repaired) as usize;
        stats.spoilt = spoilt.min(stats.made - stats.in_use);
        stats.idle = stats.made - stats.in_use - stats.spoilt;
        stats
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for arena in &mut self.arenas {
            let arena = *arena.get_mut();
            if !arena.is_null() {
                // SAFETY: it came from a box, and no instance is left, since each keeps `self`.
                drop(unsafe { Box::from_raw(arena) });
            }
        }
    }
}
