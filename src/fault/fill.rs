//! Installing pages: one run of absent pages, by as few system calls as their content allows.

use super::backend::Backend;
use super::protect;
use super::region::Region;
use super::source::{Buffers, Content, Source, Zeroes};
use super::tables::Chunk;
use super::track::touch;
use super::tracked;
use super::want::Want;
use super::{ZEROES, uffd};
use crate::uffd::{ContinueMode, CopyMode, Progress, ZeropageMode};
use core::ops::Range;
use nix::errno::Errno;

/// How far a fill came, in pages from the start of its run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filled {
    /// The first so many are memory now.
    pub(crate) resident: usize,
    /// So many after them show the kernel's zero page, or a shared image's page, now.
    pub(crate) lent: usize,
    /// Why it stopped before the end of the run, if it did.
    pub(crate) stopped_by: Option<Errno>,
}

impl Filled {
    /// Pages that are present now.
    pub(crate) fn pages(&self) -> usize {
        self.resident.wrapping_add(self.lent)
    }
}

/// How often the kernel may say "try again" without any progress before the fill gives up; the
/// instruction runs again then, and the next fault takes it from there.
const ATTEMPTS: u32 = 8;

/// Installs `pages` of `chunk`, all of them absent, from the first on: records what came of it and
/// settles the promise of `pages.len()` pages that the caller, a filler of the chunk, holds.
#[inline(always)]
pub(crate) fn add(region: &Region, chunk: &Chunk<'_>, pages: Range<usize>, want: Want) -> Filled {
    let promised = pages.len() as u64;
    let first = region.pages_of(chunk.index).start;
    region.tables.summary().set(chunk.index);
    if region.track.is_on() {
        touch(region, chunk.index);
    }
    let run = first.wrapping_add(pages.start)..first.wrapping_add(pages.end);
    let filled = fill(region, run, want);

    let lent = pages.start.wrapping_add(filled.resident);
    // A page that another process has discarded meanwhile may be recorded already.
    let resident = match filled.resident {
        0 => 0,
        _ => chunk.resident.set(pages.start..lent),
    };
    if filled.lent > 0 {
        chunk.lend().set(lent..lent.wrapping_add(filled.lent));
    }
    region.ledger.settle(promised, resident as u64, filled.lent as u64);
    filled
}

/// Installs `pages` of the reservation, all of them absent. Reads of zeroes get the zero page, where
/// there is one, and reads of a shared image the image's pages, which costs no memory; everything else
/// gets pages of its own. No run goes across the end of a shared image. Where a template ends, zeroes
/// follow to the end of the reservation, so the pages with memory come first.
#[inline(always)]
pub(crate) fn fill(region: &Region, pages: Range<usize>, want: Want) -> Filled {
    let mut filled = Filled::default();
    let mut attempts = ATTEMPTS;
    loop {
        let page = pages.start.wrapping_add(filled.pages());
        let left = pages.end.saturating_sub(page);
        if left == 0 {
            return filled;
        }
        let step = match region.backend {
            Backend::Userfaultfd if region.track.is_on() => {
                tracked::install(region, page, left, want)
            }
            Backend::Userfaultfd if region.source.is_made() => install_made(region, page),
            Backend::Userfaultfd => install(region, page, left, want),
            Backend::Mprotect => protect::install(region, page, left, want),
        };
        match step.lent {
            true => filled.lent = filled.lent.wrapping_add(step.pages),
            false => filled.resident = filled.resident.wrapping_add(step.pages),
        }
        match step.stopped_by {
            None => {}
            Some(Errno::EAGAIN) if step.pages > 0 => attempts = ATTEMPTS,
            Some(Errno::EAGAIN) if attempts > 0 => attempts = attempts.wrapping_sub(1),
            Some(_) => {
                filled.stopped_by = step.stopped_by;
                return filled;
            }
        }
    }
}

/// What one system call did, or a few that belong together.
pub(super) struct Step {
    pub(super) pages: usize,
    pub(super) lent: bool,
    pub(super) stopped_by: Option<Errno>,
}

impl Step {
    /// What userfaultfd has done.
    #[inline(always)]
    fn of(region: &Region, lent: bool, progress: Progress) -> Self {
        let pages = progress.bytes() >> region.page_shift;
        Self { pages, lent, stopped_by: progress.errno() }
    }

    /// One that did nothing.
    pub(super) fn stopped(errno: Errno) -> Self {
        Self { pages: 0, lent: false, stopped_by: Some(errno) }
    }
}

/// One system call's worth of pages from `page` on, at most `left`.
#[inline(never)]
fn install(region: &Region, page: usize, left: usize, want: Want) -> Step {
    let content = region.source.at(page, region.page_shift);
    let zeroes = match want {
        Want::Show => zero_pages(region, &content, left),
        Want::Memory | Want::Write => 0,
    };
    if zeroes > 0 {
        return zeropage(region, page, zeroes);
    }
    if let Content::Shared { pages, .. } = content
        && want == Want::Show
    {
        return show(region, page, left.min(pages));
    }
    match memory(&content) {
        Some((from, pages)) => copy(region, page, from, left.min(pages), CopyMode::DONTWAKE),
        None => Step::stopped(Errno::EFAULT),
    }
}

/// Where there are bytes to copy, and for how many pages; `None` of what is made.
#[inline(always)]
pub(super) fn memory(content: &Content) -> Option<(*const u8, usize)> {
    match *content {
        Content::Generated => None,
        // Written at once: one fault instead of two.
        Content::Bytes { from, pages } | Content::Shared { from, pages } => Some((from, pages)),
        Content::Zero => Some((ZEROES.get(), Zeroes::PAGES)),
        Content::Hole { pages } | Content::SharedHole { pages } => {
            Some((ZEROES.get(), pages.min(Zeroes::PAGES)))
        }
    }
}

/// How many of `left` pages may show the kernel's zero page when they are read. What is not memory must come
/// last in a run, see [`fill`].
#[inline(always)]
fn zero_pages(region: &Region, content: &Content, left: usize) -> usize {
    match *content {
        Content::Zero if has_zero_page(region) => left,
        Content::Hole { pages } if left <= pages && has_zero_page(region) => left,
        Content::SharedHole { pages } => left.min(pages),
        _ => 0,
    }
}

/// Whether the kernel's zero page may stand for zeroes.
#[inline(always)]
fn has_zero_page(region: &Region) -> bool {
    region.backing.is_ordinary()
}

/// The same of one page that a page function makes.
#[inline(never)]
fn install_made(region: &Region, page: usize) -> Step {
    generate(region, page, |from, pages| copy(region, page, from, pages, CopyMode::DONTWAKE))
}

/// Copies `pages` pages to where they are absent.
#[inline(always)]
pub(super) fn copy(
    region: &Region,
    page: usize,
    from: *const u8,
    pages: usize,
    mode: CopyMode,
) -> Step {
    let uffd = match uffd() {
        Ok(uffd) => uffd,
        Err(errno) => return Step::stopped(errno),
    };
    let target = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    let len = pages.wrapping_shl(region.page_shift);
    // SAFETY: the target lies in a reservation of ours, whose absent pages promise this content;
    // the source is memory of a template, at least as long.
    Step::of(region, false, unsafe { uffd.copy(target, from, len, mode) })
}

/// Shows the kernel's zero page in place of `pages` pages.
#[inline(always)]
fn zeropage(region: &Region, page: usize, pages: usize) -> Step {
    let uffd = match uffd() {
        Ok(uffd) => uffd,
        Err(errno) => return Step::stopped(errno),
    };
    let target = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    let len = pages.wrapping_shl(region.page_shift);
    // SAFETY: as in `copy`, and the content is zero.
    Step::of(region, true, unsafe { uffd.zeropage(target, len, ZeropageMode::DONTWAKE) })
}

/// Has `pages` pages from `page` on show the frames of a shared image, which other arenas have too.
#[inline(always)]
fn show(region: &Region, page: usize, pages: usize) -> Step {
    let uffd = match uffd() {
        Ok(uffd) => uffd,
        Err(errno) => return Step::stopped(errno),
    };
    let target = core::ptr::with_exposed_provenance_mut(region.address_of(page));
    let len = pages.wrapping_shl(region.page_shift);
    // SAFETY: as in `copy`, and the content is the file's, which nobody can change.
    Step::of(region, true, unsafe { uffd.r#continue(target, len, ContinueMode::DONTWAKE) })
}

/// Has the page function make a page, and `copy` install it.
pub(super) fn generate(
    region: &Region,
    page: usize,
    copy: impl FnOnce(*const u8, usize) -> Step,
) -> Step {
    let Source::Generate { function, buffers } = region.source else {
        return Step::stopped(Errno::EFAULT);
    };
    // SAFETY: the buffers belong to the arena's template, which outlives the region.
    let buffers: &Buffers = unsafe { &*buffers };
    match buffers.claim() {
        Some(mut buffer) => copy(buffer.generate(function, page), 1),
        // All are in use, by calls that are about to finish.
        None => Step::stopped(Errno::EBUSY),
    }
}
