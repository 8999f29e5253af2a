//! What a debug build finds out about a pointer that is given back, before anything is done with it.
//!
//! A freed block of two words or more is marked in its second, which the program must not write to
//! any more; the first is the list's.

use super::class;
use super::core::Core;
use super::line::Line;
use super::span::{Kind, Span};
use super::table::SLICES;
use core::alloc::Layout;
use core::fmt::Write;
use core::sync::atomic::Ordering;

/// Marks a freed block, together with its address.
const MARK: usize = 0x6672_6565_6420_626c;

/// The smallest block with room for a mark.
const MARKED: usize = 16;

impl Core {
    /// Ends the process with a message if `block` is not one of this heap's, is free already, or was
    /// allocated with another layout; else it is marked as free.
    pub(crate) fn check_freed(&self, block: *mut u8, layout: Layout) {
        let address = block.addr();
        let Some(span) = self.find(address) else {
            return self.report(
                "free of a pointer that is not a block of this heap",
                block,
                layout,
                0,
            );
        };
        let start = self.table.address_of(span);
        let (size, is_start) = match span.kind.get() {
            Kind::Blocks => {
                let size = span.size.get() as usize;
                (size, (address - start).is_multiple_of(size))
            }
            Kind::Run | Kind::Chunks => {
                ((span.carved.get() as usize) << self.pages.shift, address == start)
            }
            Kind::None | Kind::Kept => {
                return self.report("free of a block that was freed before", block, layout, 0);
            }
        };
        if !is_start {
            return self.report("free of a pointer into the midst of a block", block, layout, size);
        }
        // Where room was short, blocks may have been shrunk where they are.
        let exact = !self.stayed.load(Ordering::Relaxed);
        if !fits(span.kind.get(), size, layout, exact) {
            return self.report("free of a block with another layout", block, layout, size);
        }
        if span.kind.get() == Kind::Blocks && size >= MARKED {
            // SAFETY: the block is in the table, and has two words.
            unsafe {
                let second = block.cast::<usize>().add(1);
                if second.read() == MARK ^ address {
                    return self.report("double free of a block", block, layout, size);
                }
                second.write(MARK ^ address);
            }
        }
    }

    /// Takes the mark from a block that is handed out.
    pub(crate) fn check_allocated(&self, block: *mut u8, class: usize) {
        if !block.is_null() && class::size(class) >= MARKED {
            // SAFETY: the block is new, and has two words.
            unsafe { block.cast::<usize>().add(1).write(0) };
        }
    }

    /// The span that an address lies in, or would.
    fn find(&self, address: usize) -> Option<&Span> {
        let offset = address.checked_sub(self.table.base)?;
        let slice = offset >> super::table::SLICE_SHIFT;
        if slice >= self.table.chunks * SLICES {
            return None;
        }
        let back = usize::from(self.table.span(slice).back.load(Ordering::Relaxed));
        slice.checked_sub(back).map(|first| self.table.span(first))
    }

    fn report(&self, what: &str, block: *mut u8, layout: Layout, size: usize) {
        let mut line = Line::new();
        let _ = write!(line, "lacuna: heap \"{}\": {what}: {block:p}", self.name.as_str());
        if size > 0 {
            let _ = write!(line, ", of {size} bytes");
        }
        let (bytes, align) = (layout.size(), layout.align());
        let _ = writeln!(line, ", given back as {bytes} bytes aligned to {align}");
        line.print();
        // SAFETY: it does not return.
        unsafe { libc::abort() }
    }
}

/// Whether a block of `size` bytes may have this layout, after what `realloc` leaves in place: of blocks
/// of a class those that are not less than half, unless none of it is `exact`.
fn fits(kind: Kind, size: usize, layout: Layout, exact: bool) -> bool {
    let in_class = kind == Kind::Blocks;
    match class::for_layout(layout.size(), layout.align()).map(class::size) {
        Some(wanted) if in_class => wanted <= size && (!exact || wanted >= size / 2),
        Some(_) => !exact && layout.size() <= size,
        None => !in_class && layout.size() <= size,
    }
}
