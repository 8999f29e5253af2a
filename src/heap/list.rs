//! Doubly linked lists through their elements, which live in tables that never move.

use core::cell::Cell;
use core::ptr;

/// An element's neighbours.
pub(crate) struct Links<T> {
    next: Cell<*const T>,
    previous: Cell<*const T>,
}

impl<T> Links<T> {
    pub(crate) const fn new() -> Self {
        Self { next: Cell::new(ptr::null()), previous: Cell::new(ptr::null()) }
    }
}

/// Something with links, in at most one list at a time.
pub(crate) trait Linked: Sized {
    fn links(&self) -> &Links<Self>;
}

/// A list. Its elements outlive it: they are parts of a heap's tables.
pub(crate) struct List<T> {
    first: Cell<*const T>,
    last: Cell<*const T>,
}

impl<T: Linked> List<T> {
    pub(crate) const fn new() -> Self {
        Self { first: Cell::new(ptr::null()), last: Cell::new(ptr::null()) }
    }

    pub(crate) fn first(&self) -> Option<&T> {
        // SAFETY: elements live as long as the heap, and so longer than this borrow.
        unsafe { self.first.get().as_ref() }
    }

    pub(crate) fn last(&self) -> Option<&T> {
        // SAFETY: as above.
        unsafe { self.last.get().as_ref() }
    }

    pub(crate) fn push_front(&self, element: &T) {
        let links = element.links();
        links.previous.set(ptr::null());
        links.next.set(self.first.get());
        match self.first() {
            Some(first) => first.links().previous.set(element),
            None => self.last.set(element),
        }
        self.first.set(element);
    }

    pub(crate) fn push_back(&self, element: &T) {
        let links = element.links();
        links.next.set(ptr::null());
        links.previous.set(self.last.get());
        match self.last() {
            Some(last) => last.links().next.set(element),
            None => self.first.set(element),
        }
        self.last.set(element);
    }

    /// Takes out an element of this list.
    pub(crate) fn remove(&self, element: &T) {
        let (next, previous) = (element.links().next.get(), element.links().previous.get());
        // SAFETY: as above.
        unsafe {
            match previous.as_ref() {
                Some(it) => it.links().next.set(next),
                None => self.first.set(next),
            }
            match next.as_ref() {
                Some(it) => it.links().previous.set(previous),
                None => self.last.set(previous),
            }
        }
    }

    /// The elements, first to last.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        // SAFETY: as above.
        core::iter::successors(self.first(), |it| unsafe { it.links().next.get().as_ref() })
    }

    pub(crate) fn pop_front(&self) -> Option<&T> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }
}
