//! Installing pages while there is a checkpoint: as memory, and protected, so that nothing but a write
//! counts as one. (The zero page cannot be installed protected, and no such arena shares an image.)

use super::fill::{Step, copy, generate, memory};
use super::region::Region;
use super::track::{is_marked, note_written};
use super::want::Want;
use crate::uffd::CopyMode;
use nix::errno::Errno;

/// Installs pages from `page` on, at most `left` of them.
#[cold]
#[inline(never)]
pub(super) fn install(region: &Region, page: usize, left: usize, want: Want) -> Step {
    if region.source.is_made() {
        return install_made(region, page, want);
    }
    let Some((from, pages)) = memory(&region.source.at(page, region.page_shift)) else {
        return Step::stopped(Errno::EFAULT);
    };
    let step = copy(region, page, from, left.min(pages), mode(region, page, left, want));
    note(region, page, want, step.pages);
    step
}

/// The same of one page that a page function makes.
#[inline(never)]
fn install_made(region: &Region, page: usize, want: Want) -> Step {
    let mode = mode(region, page, 1, want);
    let step = generate(region, page, |from, pages| copy(region, page, from, pages, mode));
    note(region, page, want, step.pages);
    step
}

/// A page that comes alone and counts as written already need not be protected, nor one that is about to
/// be, where noticing that would take a signal.
#[inline(never)]
fn mode(region: &Region, page: usize, left: usize, want: Want) -> CopyMode {
    let is_write = want == Want::Write && region.track.is_by_signal();
    match is_write || left == 1 && is_marked(region, page) {
        true => CopyMode::DONTWAKE,
        false => CopyMode::DONTWAKE | CopyMode::WP,
    }
}

/// Takes note that a page which is there, if `pages` is not 0, is about to be written.
#[inline(never)]
fn note(region: &Region, page: usize, want: Want, pages: usize) {
    if pages > 0 && want == Want::Write && region.track.is_by_signal() {
        note_written(region, page);
    }
}
