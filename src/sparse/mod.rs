//! Sparse arrays: slices of any length, of which only the touched pages exist.

mod runs;

pub use runs::PopulatedElements;

use crate::arena::{Arena, ArenaBuilder, Template};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::page::CHUNK;
use bytemuck::Zeroable;
use core::fmt;
use core::marker::PhantomData;
use core::mem::MaybeUninit;
use core::ops::{Deref, DerefMut, Range};
use core::slice;

/// An array of `T` in an [`Arena`] of its own: every element has a value from the start, and only
/// the pages that are touched take memory.
///
/// It is a slice by `Deref`; a shared array of atomics can be written by any number of threads.
///
/// **System calls do not see untouched pages**: before `read` or the like gets a part of the array
/// as a buffer, [`populate`](Self::populate) that part.
///
/// Elements are never dropped, and their types must not need it.
///
/// ```
/// let mut table = lacuna::SparseArray::<u64>::filled(1 << 40, u64::MAX)?;
/// table[1 << 39] = 7;
/// assert_eq!(table[(1 << 39) + 1], u64::MAX);
/// assert_eq!(table.arena().stats().resident_bytes, lacuna::page_size());
///
/// use std::sync::atomic::{AtomicU64, Ordering};
/// let hits = lacuna::SparseArray::<AtomicU64>::zeroed(1 << 40)?;
/// hits[1 << 39].fetch_add(1, Ordering::Relaxed);
/// # Ok::<(), lacuna::Error>(())
/// ```
pub struct SparseArray<T> {
    arena: Arena,
    len: usize,
    /// What untouched elements are: the value of `filled`, or zeroes.
    value: MaybeUninit<T>,
    elements: PhantomData<T>,
}

impl<T: Copy> SparseArray<T> {
    /// `len` elements, each `value`.
    ///
    /// # Errors
    /// - [`ErrorKind::ZeroLength`], [`ErrorKind::TooLong`], [`ErrorKind::ZeroSized`],
    ///   [`ErrorKind::Overaligned`] (to more than 2 MiB): there is no such array.
    /// - [`ErrorKind::NotPrivate`]: it was to be of shared memory, to which others may write anything.
    /// - Those of [`ArenaBuilder::reserve`].
    pub fn filled(len: usize, value: T) -> Result<Self> {
        Self::filled_in(len, value, |arena| arena)
    }

    /// As [`filled`](Self::filled), in an arena that `configure` names, bounds or otherwise sets up.
    /// The template it sets is not used.
    ///
    /// # Errors
    /// As for [`filled`](Self::filled).
    ///
    /// ```
    /// let table = lacuna::SparseArray::filled_in(1 << 40, -1i32, |arena| {
    ///     arena.name("first seen").budget(1 << 30)
    /// })?;
    /// assert_eq!(table.arena().name(), "first seen");
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn filled_in<'a>(
        len: usize,
        value: T,
        configure: impl FnOnce(ArenaBuilder<'a>) -> ArenaBuilder<'a>,
    ) -> Result<Self> {
        let bytes = Self::bytes(len)?;
        let template = Template::repeat(&value)?;
        Self::make(len, bytes, template, MaybeUninit::new(value), configure)
    }
}

impl<T: Zeroable> SparseArray<T> {
    /// `len` elements, each all zeroes.
    ///
    /// # Errors
    /// As for [`filled`](Self::filled).
    pub fn zeroed(len: usize) -> Result<Self> {
        Self::zeroed_in(len, |arena| arena)
    }

    /// As [`zeroed`](Self::zeroed), in an arena that `configure` names, bounds or otherwise sets up.
    /// The template it sets is not used.
    ///
    /// # Errors
    /// As for [`filled`](Self::filled).
    pub fn zeroed_in<'a>(
        len: usize,
        configure: impl FnOnce(ArenaBuilder<'a>) -> ArenaBuilder<'a>,
    ) -> Result<Self> {
        let bytes = Self::bytes(len)?;
        Self::make(len, bytes, Template::zero(), MaybeUninit::zeroed(), configure)
    }
}

impl<T> SparseArray<T> {
    const NEEDS_NO_DROP: () = assert!(
        !core::mem::needs_drop::<T>(),
        "a sparse array never drops its elements, so their type must not need it"
    );

    /// The bytes of `len` elements.
    fn bytes(len: usize) -> Result<usize> {
        let () = Self::NEEDS_NO_DROP;
        let error = |kind| Err(Error::new(Operation::Array, kind).value(len));
        if size_of::<T>() == 0 {
            return error(ErrorKind::ZeroSized);
        }
        if align_of::<T>() > CHUNK {
            return error(ErrorKind::Overaligned);
        }
        match len.checked_mul(size_of::<T>()) {
            Some(0) => error(ErrorKind::ZeroLength),
            Some(bytes) => Ok(bytes),
            None => error(ErrorKind::TooLong),
        }
    }

    fn make<'a>(
        len: usize,
        bytes: usize,
        template: Template,
        value: MaybeUninit<T>,
        configure: impl FnOnce(ArenaBuilder<'a>) -> ArenaBuilder<'a>,
    ) -> Result<Self> {
        let mut builder = configure(Arena::builder(bytes)).template(template);
        // Whatever builder came back, the array's length is what its safety rests on.
        builder.len = bytes;
        // Others may write to shared memory whatever they like, whenever they like.
        if builder.is_shared() {
            return Err(Error::new(Operation::Array, ErrorKind::NotPrivate));
        }
        Ok(Self { arena: builder.reserve()?, len, value, elements: PhantomData })
    }

    /// The arena behind the array: its statistics, its limit.
    ///
    /// What can be done with a shared arena is safe for the array, whose elements always have a
    /// value; discarding behind the array's back is not, and is `unsafe`.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// The ranges of elements that are present, in order: those any byte of which lies on a page
    /// that is. Elements outside of them have the initial value. It costs in proportion to what is
    /// present.
    ///
    /// ```
    /// let mut table = lacuna::SparseArray::<u8>::zeroed(1 << 40)?;
    /// table[1 << 39] = 1;
    /// let page = lacuna::page_size();
    /// assert_eq!(table.populated().collect::<Vec<_>>(), [1 << 39..(1 << 39) + page]);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    #[must_use]
    pub fn populated(&self) -> PopulatedElements<'_> {
        PopulatedElements::new(self.arena.populated(), size_of::<T>(), self.len)
    }

    /// Makes the pages of the elements in `range` present, so that system calls can use them as a
    /// buffer and touching them does not fault.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`], and those of [`Arena::populate`].
    pub fn populate(&self, range: Range<usize>) -> Result<()> {
        let bytes = self.byte_range(Operation::Populate, &range)?;
        self.arena.populate(self.arena.covering(bytes))
    }

    /// Sets the elements in `range` back to their initial value and gives the memory of the pages
    /// that lie within it back.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfBounds`], and those of [`Arena::discard`].
    ///
    /// ```
    /// let mut table = lacuna::SparseArray::<u32>::filled(1 << 30, 5)?;
    /// table[1000] = 1;
    /// table.discard(0..1 << 20)?;
    /// assert_eq!(table[1000], 5);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn discard(&mut self, range: Range<usize>) -> Result<()> {
        let bytes = self.byte_range(Operation::Discard, &range)?;
        let page = self.arena.page_size();
        let whole = bytes.start.next_multiple_of(page)..bytes.end - bytes.end % page;
        if whole.start >= whole.end {
            // Within one page, or the edges of two.
            let middle = whole.start.min(bytes.end);
            self.restore(bytes.start..middle);
            self.restore(middle..bytes.end);
            return Ok(());
        }
        self.restore(bytes.start..whole.start);
        self.restore(whole.end..bytes.end);
        // SAFETY: the array is borrowed mutably, so nobody has a reference to an element, and the
        // template has a valid value for each.
        unsafe { self.arena.discard(whole) }
    }

    /// Sets every element back to its initial value and gives all memory back.
    ///
    /// # Errors
    /// Those of [`Arena::reset`].
    pub fn reset(&mut self) -> Result<()> {
        // SAFETY: as in `discard`.
        unsafe { self.arena.reset() }
    }

    /// Writes the initial value over `bytes`, which lie on one page, if that is present.
    fn restore(&mut self, bytes: Range<usize>) {
        if bytes.is_empty() || !self.arena.is_present(bytes.start) {
            return;
        }
        let value = self.value.as_ptr().cast::<MaybeUninit<u8>>();
        let array = self.arena.as_ptr().cast::<MaybeUninit<u8>>();
        for offset in bytes {
            // SAFETY: the offset lies within the array, which is borrowed mutably; at the end each
            // element consists of bytes of the value, in their places.
            unsafe { *array.add(offset) = *value.add(offset % size_of::<T>()) };
        }
    }

    fn byte_range(&self, operation: Operation, range: &Range<usize>) -> Result<Range<usize>> {
        if range.start > range.end || range.end > self.len {
            let error = Error::new(operation, ErrorKind::OutOfBounds);
            return Err(error.range(range.start, range.end));
        }
        Ok(range.start * size_of::<T>()..range.end * size_of::<T>())
    }
}

impl<T> Deref for SparseArray<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the arena holds at least `len` elements, aligned, all valid: untouched ones by
        // the template, others because only valid ones are written. A touch is resolved to that, or
        // ends the process. The slice fits `isize`, as every arena does.
        unsafe { slice::from_raw_parts(self.arena.as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for SparseArray<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the array is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.arena.as_ptr().cast(), self.len) }
    }
}

impl<T> fmt::Debug for SparseArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SparseArray").field("len", &self.len).field("arena", &self.arena).finish()
    }
}
