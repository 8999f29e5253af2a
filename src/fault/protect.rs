//! The backend without userfaultfd: what is missing is inaccessible.
//!
//! A page is filled first, through `/proc/self/mem`, which ignores the protection of private memory,
//! and made accessible then: so it appears to other threads whole, as with UFFDIO_COPY. What that has
//! and this lacks is the answer EEXIST; so pages are installed by the owner of their chunk, whose bits
//! are the truth. The memory is ordinary private memory, as with userfaultfd: forked children get a
//! copy, and dropping pages, measuring them and handing them to a heap are the same.

use super::ZEROES;
use super::decode::Access;
use super::fill::{Step, generate};
use super::pagemap::Pagemap;
use super::region::Region;
use super::source::{Content, Zeroes};
use super::tables::Chunk;
use super::verify::is_accessible;
use super::violation::Refusal;
use super::want::Want;
use crate::atomic::{AtomicU32, Ordering};
use crate::page::CHUNK;
use crate::sys::{self, seam::Call};
use core::ffi::c_int;
use core::ops::Range;
use core::ptr;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use std::os::fd::RawFd;

/// `/proc/self/mem` of this process, or none.
static MEMORY: AtomicU32 = AtomicU32::new(u32::MAX);

/// Makes `descriptor`, or none (-1), the one that pages are written through; tells the one before.
pub(crate) fn set_memory(descriptor: RawFd) -> RawFd {
    // Relaxed: stored before the first region that needs it is published, and published with it; and
    // by the only thread of a forked child.
    MEMORY.swap(descriptor as u32, Ordering::Relaxed) as RawFd
}

/// Whether pages can be written while they are inaccessible.
pub(crate) fn has_memory() -> bool {
    MEMORY.load(Ordering::Relaxed) != u32::MAX
}

/// Writes `len` bytes to `target`, whatever its protection; tells how many came.
///
/// # Safety
/// The target is the caller's. `from` need not be readable, which is an error.
#[inline(always)]
pub(crate) unsafe fn write(target: usize, from: *const u8, len: usize) -> Result<usize, Errno> {
    let descriptor = MEMORY.load(Ordering::Relaxed) as RawFd;
    // SAFETY: the kernel reads `from` as it would for any write(2); the target is the caller's.
    unsafe { sys::write_at(Call::WriteMemory, descriptor, from, len, target) }
}

/// Installs pages from `page` on, at most `left` of them.
#[inline(never)]
pub(super) fn install(region: &Region, page: usize, left: usize, want: Want) -> Step {
    let copy = |from: *const u8, pages: usize| copy(region, page, from, pages);
    match region.source.at(page, region.page_shift) {
        Content::Zero => by_kernel(region, page, left, want),
        // What may not be memory must come last in a run, see `fill::fill`.
        Content::Hole { pages } if left <= pages => by_kernel(region, page, left, want),
        Content::Hole { pages } => copy(ZEROES.get(), left.min(pages).min(Zeroes::PAGES)),
        Content::Shared { pages, .. } | Content::SharedHole { pages } => {
            let mut step = by_kernel(region, page, left.min(pages), want);
            if step.lent && want != Want::Show {
                // What follows may be memory, which `Filled` has first: another turn, then.
                step.stopped_by = Some(step.stopped_by.unwrap_or(Errno::EINTR));
            }
            step
        }
        Content::Bytes { from, pages } => copy(from, left.min(pages)),
        Content::Generated => generate(region, page, copy),
    }
}

/// Installs `pages` pages with the bytes at `from`.
#[inline(always)]
fn copy(region: &Region, page: usize, from: *const u8, pages: usize) -> Step {
    let step = write_pages(region, page, from, pages);
    let written = page..page.wrapping_add(step.pages);
    if step.pages == 0 {
        return step;
    }
    match open(region, written.clone()) {
        Ok(()) => step,
        Err(errno) => {
            let opened = keep_opened(region, written);
            Step { pages: opened, lent: false, stopped_by: Some(errno) }
        }
    }
}

/// Writes `pages` pages while they are out of reach.
#[inline(always)]
fn write_pages(region: &Region, page: usize, from: *const u8, pages: usize) -> Step {
    let len = pages.wrapping_shl(region.page_shift);
    // SAFETY: the pages are missing ones of a reservation of ours, and their chunk this thread's.
    match unsafe { write(region.address_of(page), from, len) } {
        Ok(written) => {
            let done = written >> region.page_shift;
            // What cut it short is met by the next step, which says what it is; but not even one
            // page is no progress.
            let short = if done == 0 { Errno::EFAULT } else { Errno::EAGAIN };
            Step { pages: done, lent: false, stopped_by: (done < pages).then_some(short) }
        }
        Err(errno) => Step::stopped(errno),
    }
}

/// Installs `pages` pages of zeroes, or of a shared image: accessible memory that the kernel fills. It
/// does so at once, or else, where it cannot (before Linux 5.14), at the next touch, without a signal.
#[inline(always)]
fn by_kernel(region: &Region, page: usize, pages: usize, want: Want) -> Step {
    if let Err(errno) = open(region, page..page.wrapping_add(pages)) {
        let opened = keep_opened(region, page..page.wrapping_add(pages));
        return Step { pages: opened, lent: true, stopped_by: Some(errno) };
    }
    let advice = match want {
        Want::Show => libc::MADV_POPULATE_READ,
        Want::Memory | Want::Write => libc::MADV_POPULATE_WRITE,
    };
    let start = ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: populating changes no content, and the pages are a reservation's of ours.
    let populated = unsafe { sys::advise(start, pages.wrapping_shl(region.page_shift), advice) };
    Step { pages, lent: want == Want::Show || populated.is_err(), stopped_by: None }
}

/// Fills a whole chunk, of which nothing is present, with a huge page if the kernel has one; tells how
/// many pages are memory now, and how many the kernel may turn into memory by itself.
#[inline(never)]
pub(super) fn fill_chunk(region: &Region, chunk: &Chunk<'_>) -> (usize, usize) {
    let pages = region.pages_of(chunk.index);
    // Only for this moment: a page written alone later must not become a huge one. Where the kernel has
    // none, the pages are small ones.
    advise_huge(region, pages.start, libc::MADV_HUGEPAGE);
    let filled = fill_pages(region, pages.clone());
    advise_huge(region, pages.start, libc::MADV_NOHUGEPAGE);
    filled.unwrap_or_else(|_| (0, keep_opened(region, pages)))
}

fn advise_huge(region: &Region, page: usize, advice: c_int) {
    let start = ptr::with_exposed_provenance_mut(region.address_of(page));
    // SAFETY: the advice changes no content, and the chunk is a reservation's of ours.
    let _ = unsafe { sys::advise(start, CHUNK, advice) };
}

/// Fills `pages`, of which nothing is present, as [`fill_chunk`] tells. If it fails, a first part of them
/// may be accessible.
#[inline(always)]
fn fill_pages(region: &Region, pages: Range<usize>) -> Result<(usize, usize), Errno> {
    let zeroes = write_template(region, pages.clone())?..pages.end;
    open(region, pages.clone())?;
    let start = ptr::with_exposed_provenance_mut(region.address_of(zeroes.start));
    let len = zeroes.len().wrapping_shl(region.page_shift);
    // SAFETY: populating changes no content.
    Ok(match unsafe { sys::advise(start, len, libc::MADV_POPULATE_WRITE) } {
        Ok(()) => (pages.len(), 0),
        Err(_) => (pages.len().wrapping_sub(zeroes.len()), zeroes.len()),
    })
}

/// Writes what the template says `pages` contain, while they are out of reach; tells from which page on
/// that is zero.
#[inline(always)]
fn write_template(region: &Region, pages: Range<usize>) -> Result<usize, Errno> {
    let mut page = pages.start;
    while page < pages.end {
        let left = pages.end.wrapping_sub(page);
        let step = match region.source.at(page, region.page_shift) {
            Content::Zero => return Ok(page),
            // Shared images are not filled by whole chunks.
            Content::Shared { .. } | Content::SharedHole { .. } => return Err(Errno::EINVAL),
            Content::Hole { pages } => {
                write_pages(region, page, ZEROES.get(), left.min(pages).min(Zeroes::PAGES))
            }
            Content::Bytes { from, pages } => write_pages(region, page, from, left.min(pages)),
            Content::Generated => {
                generate(region, page, |from, pages| write_pages(region, page, from, pages))
            }
        };
        match step.stopped_by {
            Some(errno) if step.pages == 0 => return Err(errno),
            _ => page = page.wrapping_add(step.pages),
        }
    }
    Ok(pages.end)
}

/// What a fault on a page of a chunk of this thread's comes to, if the page is said to be present, or could
/// not be installed: `errno` tells why.
#[cold]
pub(super) fn verify(
    region: &Region,
    chunk: &Chunk<'_>,
    page: usize,
    access: Access,
    errno: Errno,
) -> Result<(), Refusal> {
    let at = region.pages_of(chunk.index).start.wrapping_add(page);
    if !chunk.is_present(page) {
        return Err(Refusal::Unresolvable(errno));
    }
    // Before Linux 5.14 it cannot be asked, and is made accessible in any case.
    let populates = POPULATES.load(Ordering::Relaxed) != 0;
    if populates && is_accessible(region, at, access) {
        // Another thread was faster.
        return Ok(());
    }
    if populates && !chunk.state.is_shut() {
        return Err(Refusal::Foreign);
    }
    open(region, at..at.wrapping_add(1)).map_err(|errno| match errno {
        Errno::ENOMEM => Refusal::OutOfMemory,
        errno => Refusal::Unresolvable(errno),
    })
}

/// 1 if the kernel knows MADV_POPULATE_READ and _WRITE, since 5.14.
static POPULATES: AtomicU32 = AtomicU32::new(0);

/// Says whether the kernel knows them.
pub(crate) fn set_populates(populates: bool) {
    // Relaxed: stored before the first region that needs it is published, and published with it.
    POPULATES.store(u32::from(populates), Ordering::Relaxed);
}

/// Makes pages accessible.
pub(crate) fn open(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    set(region, pages, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE)
}

/// Makes pages inaccessible: touching them raises SIGSEGV. What they hold stays.
pub(crate) fn close(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    set(region, pages, ProtFlags::PROT_NONE)
}

/// After `pages` could not be made accessible: tells how many of the first are all the same, since the
/// kernel goes from mapping to mapping, and drops what the others hold. It has no mapping left, mostly.
fn keep_opened(region: &Region, pages: Range<usize>) -> usize {
    let opened = count_opened(region, pages.clone());
    let _ = drop_pages(region, pages.start.wrapping_add(opened)..pages.end);
    opened
}

/// How many of the first of `pages` are accessible.
#[cold]
#[inline(never)]
pub(crate) fn count_opened(region: &Region, pages: Range<usize>) -> usize {
    pages.take_while(|page| sys::is_readable(region.address_of(*page))).count()
}

/// Whether the kernel has not filled a page that is accessible. If so, it will not do so any more.
///
/// Asked twice, since it may fill the page until that is out of reach.
#[inline(always)]
pub(crate) fn close_if_missing(
    region: &Region,
    chunk: &Chunk<'_>,
    pagemap: &Pagemap,
    page: usize,
) -> Result<bool, Errno> {
    if !pagemap.is_missing(region, page)? {
        return Ok(false);
    }
    let alone = page..page.wrapping_add(1);
    close(region, alone.clone())?;
    let missing = pagemap.is_missing(region, page);
    if missing != Ok(true) && open(region, alone).is_err() {
        chunk.state.set_shut();
    }
    missing
}

/// Makes the present ones of `pages` of a chunk accessible again, after they could not be dropped.
#[cold]
pub(crate) fn reopen(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>) {
    let first = region.pages_of(chunk.index).start;
    for page in pages.filter(|page| chunk.is_present(*page)) {
        let page = first.wrapping_add(page);
        if open(region, page..page.wrapping_add(1)).is_err() {
            chunk.state.set_shut();
        }
    }
}

#[inline(always)]
fn set(region: &Region, pages: Range<usize>, protection: ProtFlags) -> Result<(), Errno> {
    let start = ptr::with_exposed_provenance_mut(region.address_of(pages.start));
    // SAFETY: the pages are a reservation's of ours, which is told when they are touched.
    unsafe { sys::protect(start, pages.len().wrapping_shl(region.page_shift), protection) }
}

/// Has the kernel drop what pages hold; where they are shared, for everybody.
pub(crate) fn drop_pages(region: &Region, pages: Range<usize>) -> Result<(), Errno> {
    let start = ptr::with_exposed_provenance_mut(region.address_of(pages.start));
    let len = pages.len().wrapping_shl(region.page_shift);
    // SAFETY: the pages lie in a reservation of ours, and the caller gives up what they hold.
    unsafe { sys::advise(start, len, region.backing.discard_advice()) }
}
