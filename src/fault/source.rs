//! What untouched pages contain, as the handler sees it: where to copy them from. All of it is
//! memory that is present, or that the kernel can make present by itself, since UFFDIO_COPY
//! cannot read a page that needs a SIGBUS handler.

use super::stored::Stored;
use super::tuning::PAGE_BUFFERS;
use crate::atomic::{AtomicPtr, AtomicU64, Ordering};
use crate::page;
use core::ops::Range;
use core::ptr;

/// The bytes of a run of pages.
#[derive(Clone, Copy)]
pub(crate) enum Content {
    /// Zeroes, from here to the end of the reservation.
    Zero,
    /// Zeroes in `pages` pages, after which there is something else.
    Hole { pages: usize },
    /// `pages` pages' bytes from here on.
    Bytes { from: *const u8, pages: usize },
    /// The same, and they are pages of the file that the reservation maps there.
    Shared { from: *const u8, pages: usize },
    /// `pages` pages of zeroes, which that file does not have.
    SharedHole { pages: usize },
    /// Whatever a page function makes of one page.
    Generated,
}

/// Where the pages of an arena come from, in pages of the arena's size. The memory behind the
/// pointers belongs to the arena's template and outlives the region.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    Zero,
    /// A value of `period` bytes, repeated without regard to pages, in a buffer of
    /// `period` bytes and `span` pages.
    Repeat {
        buffer: *const u8,
        period: usize,
        span: usize,
    },
    /// `whole` pages of bytes from `bytes`, then one at `tail`, if any, then zeroes.
    ///
    /// Bytes that are `mapped` from a file must be read by system calls alone, which survive it
    /// when the file is cut short.
    Image {
        bytes: *const u8,
        whole: usize,
        tail: *const u8,
        mapped: bool,
    },
    /// The same, but the reservation maps the `whole` pages privately, from a file in memory that
    /// nobody can change. A bit for each of them that is set in `holes` says that the file does not
    /// have it: it is of zeroes.
    Shared {
        bytes: *const u8,
        whole: usize,
        tail: *const u8,
        holes: *const u64,
    },
    /// An image that an arena was saved to, always mapped from its file.
    Stored(*const Stored),
    /// A function, with buffers to run it in.
    Generate {
        function: PageFunction,
        buffers: *const Buffers,
    },
}

/// A function that fills the page of the given index; see [`Template::generate`].
///
/// [`Template::generate`]: crate::Template::generate
pub(crate) type PageFunction = fn(page_index: u64, page: &mut [u8]);

// SAFETY: what the pointers lead to is never written while a region has them, except the buffers,
// which are claimed.
unsafe impl Send for Source {}
// SAFETY: as above.
unsafe impl Sync for Source {}

impl Source {
    /// Whether ordinary code may read the content, or a page function make it, anywhere.
    pub(crate) fn is_ordinary(&self) -> bool {
        !matches!(self, Self::Image { mapped: true, .. } | Self::Stored(_))
    }

    /// Whether any of the content is written to pages that are out of reach, without userfaultfd.
    pub(crate) fn is_written(&self) -> bool {
        match *self {
            Self::Zero => false,
            Self::Shared { tail, .. } => !tail.is_null(),
            _ => true,
        }
    }

    /// How many pages at the start of the reservation are mapped from a file that other arenas map too.
    pub(crate) fn shared_pages(&self) -> usize {
        match *self {
            Self::Shared { whole, .. } => whole,
            _ => 0,
        }
    }

    /// Whether a page function makes it.
    pub(crate) fn is_made(&self) -> bool {
        matches!(self, Self::Generate { .. })
    }

    /// How many of `pages`, all of them mapped from a shared image, the file does not have: those of whole
    /// words of 64, of which a chunk may be a part where pages are large.
    pub(crate) fn holes(&self, pages: &Range<usize>) -> usize {
        let Self::Shared { holes, .. } = *self else { return 0 };
        let words = pages.start / 64..pages.end.div_ceil(64);
        // SAFETY: as in `shared`. Bits past the last page are clear.
        let count = |word| unsafe { holes.add(word).read() }.count_ones() as usize;
        words.map(count).fold(0, usize::wrapping_add)
    }

    /// What page `page` contains, and how many pages after it come from the same place.
    pub(crate) fn at(&self, page: usize, page_shift: u32) -> Content {
        match *self {
            Self::Shared { bytes, whole, holes, .. } if page < whole => {
                shared(bytes, whole, holes, page, page_shift)
            }
            // SAFETY: it belongs to the arena's template, which outlives the region.
            Self::Stored(image) => unsafe { &*image }.at(page, page_shift),
            _ => self.outside(page, page_shift),
        }
    }

    /// The same of a page that is neither mapped from a shared image nor in a stored one: apart, since it is
    /// called deep in the handler.
    #[inline(always)]
    fn outside(&self, page: usize, page_shift: u32) -> Content {
        match *self {
            Self::Zero | Self::Stored(_) => Content::Zero,
            Self::Repeat { buffer, period, span } => {
                let phase = page.wrapping_shl(page_shift).checked_rem(period).unwrap_or(0);
                Content::Bytes { from: buffer.wrapping_add(phase), pages: span }
            }
            Self::Image { bytes, whole, .. } if page < whole => Content::Bytes {
                from: bytes.wrapping_add(page.wrapping_shl(page_shift)),
                pages: whole.wrapping_sub(page),
            },
            Self::Image { whole, tail, .. } | Self::Shared { whole, tail, .. }
                if page == whole && !tail.is_null() =>
            {
                Content::Bytes { from: tail, pages: 1 }
            }
            Self::Image { .. } | Self::Shared { .. } => Content::Zero,
            Self::Generate { .. } => Content::Generated,
        }
    }

    /// Writes the content of `pages` pages from `first` on to `target`, by ordinary stores: see
    /// [`is_ordinary`](Self::is_ordinary). Zeroes are not written where the content is zero to the
    /// end. None of the pages is mapped from a shared image.
    ///
    /// Page by page, whatever the content's runs: what is copied again and again stays in the
    /// nearest cache then, and memcpy takes the ways that are best for two megabytes only where they
    /// are copied from elsewhere (measured: 32 microseconds a chunk, 48 in runs of 64 KiB, 77 in
    /// runs of 1 MiB).
    ///
    /// # Safety
    /// `target` points to so many pages, zeroed, of the caller's.
    #[inline(always)]
    pub(crate) unsafe fn write(
        &self,
        first: usize,
        pages: usize,
        page_shift: u32,
        target: *mut u8,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            match *self {
                Self::Generate { function, .. } => {
                    make(function, first, pages, page_shift, target);
                }
                _ => self.write_bytes(first, pages, page_shift, target),
            }
        }
    }

    /// [`write`](Self::write) of what is no page function's.
    ///
    /// # Safety
    /// As for `write`.
    #[inline(never)]
    unsafe fn write_bytes(&self, first: usize, pages: usize, page_shift: u32, target: *mut u8) {
        let size = 1usize.wrapping_shl(page_shift);
        for index in 0..pages {
            let target = target.wrapping_add(index.wrapping_shl(page_shift));
            match self.outside(first.wrapping_add(index), page_shift) {
                // SAFETY: the template's memory has the whole page, and so has the target.
                Content::Bytes { from, .. } => unsafe {
                    ptr::copy_nonoverlapping(from, target, size);
                },
                // Of a shared image what its tail is not, which nobody asks for.
                Content::Zero | Content::Generated => return,
                Content::Shared { .. } | Content::SharedHole { .. } | Content::Hole { .. } => {
                    return;
                }
            }
        }
    }
}

/// What page `page` of an image of `whole` pages contains, which a file has except for its holes.
#[inline(never)]
fn shared(
    bytes: *const u8,
    whole: usize,
    holes: *const u64,
    page: usize,
    page_shift: u32,
) -> Content {
    // SAFETY: the template has a bit for each of the pages, in whole words, and never changes them.
    let word = unsafe { holes.add(page / 64).read() } >> (page % 64);
    let left = (64usize.wrapping_sub(page % 64)).min(whole.wrapping_sub(page));
    if word & 1 != 0 {
        return Content::SharedHole { pages: left.min(word.trailing_ones() as usize) };
    }
    let from = bytes.wrapping_add(page.wrapping_shl(page_shift));
    Content::Shared { from, pages: left.min(word.trailing_zeros() as usize) }
}

/// Runs a page function for `pages` pages of an arena from `first` on: once for each base page in
/// them, since those are what page functions count.
///
/// # Safety
/// `target` points to so many pages, zeroed, of the caller's.
#[inline(always)]
unsafe fn make(
    function: PageFunction,
    first: usize,
    pages: usize,
    page_shift: u32,
    mut target: *mut u8,
) {
    let base = page::page_shift();
    let in_base_pages = |pages: usize| pages.wrapping_shl(page_shift.wrapping_sub(base));
    let first = in_base_pages(first);
    for index in first..first.wrapping_add(in_base_pages(pages)) {
        let size = 1usize.wrapping_shl(base);
        // SAFETY: as the caller promises.
        function(index as u64, unsafe { &mut *ptr::slice_from_raw_parts_mut(target, size) });
        target = target.wrapping_add(size);
    }
}

/// Pages of zeroes to copy from: a read-only mapping whose every page is the kernel's one zero
/// page, so that it costs no memory and stays in the nearest cache.
pub(crate) struct Zeroes {
    pub(crate) base: AtomicPtr<u8>,
}

impl Zeroes {
    /// Pages of the mapping.
    pub(crate) const PAGES: usize = super::bits::BITS;

    pub(crate) const fn new() -> Self {
        Self { base: AtomicPtr::new(ptr::null_mut()) }
    }

    /// Where the zeroes begin.
    pub(crate) fn get(&self) -> *const u8 {
        // Relaxed: stored before the first region is published, and published with it.
        self.base.load(Ordering::Relaxed)
    }
}

/// Page buffers for page functions, claimed for the time of one call.
pub(crate) struct Buffers {
    base: *mut u8,
    page_size: usize,
    /// How many there are.
    count: usize,
    /// A bit for each buffer that is in use.
    claimed: AtomicU64,
}

// SAFETY: each buffer is used by whoever claimed its bit.
unsafe impl Send for Buffers {}
// SAFETY: as above.
unsafe impl Sync for Buffers {}

/// A buffer in use.
pub(crate) struct Claimed<'a> {
    owner: &'a Buffers,
    slot: u32,
}

impl Buffers {
    /// `count` buffers, at most [`PAGE_BUFFERS`], of `page_size` bytes each, at `base`.
    ///
    /// # Safety
    /// The memory is used by nobody else and outlives the value.
    pub(crate) unsafe fn new(base: *mut u8, page_size: usize, count: usize) -> Self {
        Self { base, page_size, count: count.min(PAGE_BUFFERS), claimed: AtomicU64::new(0) }
    }

    /// A buffer, unless all are in use.
    pub(crate) fn claim(&self) -> Option<Claimed<'_>> {
        loop {
            let slot = (!self.claimed.load(Ordering::Relaxed)).trailing_zeros();
            if slot as usize >= self.count {
                return None;
            }
            let bit = 1 << slot;
            // Acquire pairs with the Release in `drop`: the buffer's last user is done with it.
            if self.claimed.fetch_or(bit, Ordering::Acquire) & bit == 0 {
                return Some(Claimed { owner: self, slot });
            }
        }
    }
}

impl Claimed<'_> {
    /// Runs `function` for page `page` in this buffer, zeroed before, and tells where that is.
    pub(crate) fn generate(&mut self, function: PageFunction, page: usize) -> *const u8 {
        let size = self.owner.page_size;
        let start = self.owner.base.wrapping_add(size.wrapping_mul(self.slot as usize));
        // SAFETY: the buffer is this claim's alone, and a page long.
        unsafe {
            ptr::write_bytes(start, 0, size);
            make(function, page, 1, size.trailing_zeros(), start);
        }
        start
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.owner.claimed.fetch_and(!(1 << self.slot), Ordering::Release);
    }
}
