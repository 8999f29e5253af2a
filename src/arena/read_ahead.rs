//! Having the kernel read what is about to be copied from a template's file.

use crate::fault::region::Region;
use crate::fault::source::{Content, Source};
use crate::fault::tuning::READ_ALONG;
use crate::page::page_size;
use crate::sys;
use core::ops::Range;
use core::ptr;

/// Has the kernel begin to read what `runs` of pages need of the template's file, if it has one. Nothing
/// waits for it, and a file that was cut short is no concern of it.
pub(super) fn read_ahead(region: &Region, runs: impl Iterator<Item = Range<usize>>) {
    for range in ranges(&region.source, region.page_shift, runs) {
        let start = ptr::with_exposed_provenance_mut(range.start);
        // SAFETY: the range lies in the template's mapping, as far as there are pages; the advice changes
        // no content. That it fails is no harm: the pages are read when they are copied.
        let _ = unsafe { sys::advise(start, range.len(), libc::MADV_WILLNEED) };
    }
}

/// Where the content of `runs` of pages is mapped from a file: addresses, from the start of a page on.
/// Ranges that are near each other are one.
fn ranges(
    source: &Source,
    page_shift: u32,
    runs: impl Iterator<Item = Range<usize>>,
) -> Vec<Range<usize>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    if !matches!(source, Source::Image { mapped: true, .. } | Source::Stored(_)) {
        return ranges;
    }
    for mut run in runs {
        while !run.is_empty() {
            let (from, pages) = match source.at(run.start, page_shift) {
                Content::Bytes { from, pages } => (Some(from.addr()), pages),
                Content::Hole { pages } => (None, pages),
                // To the end: neither source has anything else.
                _ => (None, run.len()),
            };
            let pages = pages.clamp(1, run.len());
            if let Some(from) = from.filter(|_| is_in_file(source, run.start)) {
                add(&mut ranges, from, pages << page_shift, page_shift);
            }
            run.start += pages;
        }
    }
    ranges
}

/// Whether a page's bytes are mapped from the template's file, and not a buffer's.
fn is_in_file(source: &Source, page: usize) -> bool {
    match *source {
        Source::Image { whole, mapped, .. } => mapped && page < whole,
        // SAFETY: it belongs to the arena's template, which outlives the region.
        Source::Stored(image) => unsafe { &*image }.place(page).is_some(),
        _ => false,
    }
}

/// Adds a range of addresses, to the last one if it is near.
fn add(ranges: &mut Vec<Range<usize>>, start: usize, len: usize, page_shift: u32) {
    let end = start + len;
    // An image need not begin where a page of its file does. Nothing is mapped before the base page that it
    // begins in, whatever the arena's pages are.
    let start = start & !(page_size() - 1);
    match ranges.last_mut() {
        Some(last) if start >= last.start && start <= last.end + (READ_ALONG << page_shift) => {
            last.end = last.end.max(end);
        }
        _ => ranges.push(start..end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::stored::{Fill, GROUP, Group, Stored};
    use core::iter::once;

    const SHIFT: u32 = 21;

    fn image(bytes: usize) -> Source {
        let bytes = ptr::without_provenance(bytes);
        Source::Image { bytes, whole: 10, tail: ptr::without_provenance(8), mapped: true }
    }

    /// The range began before the mapping where the arena's pages are huge.
    #[test]
    fn a_range_begins_in_the_base_page_of_its_bytes() {
        let base = (1 << 30) + 3 * page_size();
        let of = |bytes| ranges(&image(bytes), SHIFT, once(0..1));
        assert_eq!(of(base), std::slice::from_ref(&(base..base + (1 << SHIFT))));
        assert_eq!(of(base + 77), std::slice::from_ref(&(base..base + 77 + (1 << SHIFT))));
    }

    #[test]
    fn what_is_near_is_read_along() {
        let far = READ_ALONG + 4;
        let runs = [0..2, 2 + READ_ALONG..4 + READ_ALONG, 4 + READ_ALONG + far..usize::MAX];
        let (first, second) = (1 << 30, 1usize << 40);
        let source = Source::Image {
            bytes: ptr::without_provenance(second),
            whole: 100,
            tail: ptr::without_provenance(first),
            mapped: true,
        };
        let at = |page: usize| second + (page << SHIFT);
        // Neither the tail, which is no part of the mapping, nor the zeroes after it.
        assert_eq!(
            ranges(&source, SHIFT, runs.into_iter()),
            [at(0)..at(4 + READ_ALONG), at(4 + READ_ALONG + far)..at(100)]
        );
        assert!(ranges(&Source::Zero, SHIFT, once(0..1)).is_empty());
    }

    /// What a saved image has is read ahead from its two places, and what it does not have is not.
    #[test]
    fn a_stored_image_is_read_where_it_has_pages() {
        let shift = page_size().trailing_zeros();
        let mut group = Group::default();
        // Pages 0..4, of which 2 and 3 lie in their second places, and page 300.
        group.present[0] = 0b1111;
        group.second[0] = 0b1100;
        group.present[300 / 64] = 1 << (300 % 64);
        let groups = [Group::default(), group];
        let (base, buffer) = (1usize << 40, ptr::without_provenance(64));
        let data = ptr::without_provenance(base);
        for fill in [Fill::Zero, Fill::Repeat { buffer, period: 1, span: 16 }] {
            // SAFETY: nobody follows the pointers, but that to the groups, which are there.
            let stored = unsafe { Stored::new(data, groups.as_ptr(), groups.len(), fill) };
            let source = Source::Stored(&raw const stored);
            let at = |page: usize| base + (page << shift);
            let first = 2 * GROUP;
            assert_eq!(
                ranges(&source, shift, once(0..2 * GROUP + 9)),
                [
                    at(first)..at(first + 2),
                    at(first + GROUP + 2)..at(first + GROUP + 4),
                    at(first + 300)..at(first + 301),
                ]
            );
        }
    }
}
