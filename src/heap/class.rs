//! Size classes: multiples of 8 up to 64 bytes, then four to a doubling, so that at most a fifth of
//! a block is rounding.

/// How many classes there are.
pub(crate) const COUNT: usize = FINE + 4 * DOUBLINGS;

/// The largest block of a class, in bytes. What is larger has pages of its own.
pub(crate) const LARGEST: usize = FINEST << DOUBLINGS;

/// Up to here there is a class for each multiple of 8.
const FINEST: usize = 64;
const FINE: usize = FINEST / 8;
const DOUBLINGS: usize = 11;

/// The largest block that lies in a span of one slice; larger ones lie in spans of eight.
const SMALL: usize = 8 << 10;

/// The class of blocks of `size` bytes, between 1 and [`LARGEST`].
#[inline]
pub(crate) const fn of(size: usize) -> usize {
    if size <= FINEST {
        return size.wrapping_sub(1) / 8;
    }
    let last = size - 1;
    let doubling = last.ilog2() as usize;
    let quarter = (last >> (doubling - 2)) & 3;
    FINE + (doubling - FINEST.ilog2() as usize) * 4 + quarter
}

/// The class for a layout; `None` if it needs pages of its own. Blocks lie in their span, which is
/// aligned to a slice, at multiples of their size: so a size that is a multiple of the alignment is
/// aligned, and rounding up to one always meets a class.
#[inline]
pub(crate) const fn for_layout(size: usize, align: usize) -> Option<usize> {
    if align <= 8 {
        return if size <= LARGEST { Some(of(size)) } else { None };
    }
    // A layout's size does not overflow when rounded up to its alignment.
    let size = size.wrapping_add(align - 1) & !(align - 1);
    if size <= LARGEST && align <= super::table::SLICE { Some(of(size)) } else { None }
}

/// The size in bytes of the blocks of a class.
pub(crate) const fn size(class: usize) -> usize {
    if class < FINE {
        return (class + 1) * 8;
    }
    let (doubling, quarter) = ((class - FINE) / 4, (class - FINE) % 4);
    (FINEST << doubling) / 4 * (5 + quarter)
}

/// The slices of a span of this class.
pub(crate) const fn slices(class: usize) -> usize {
    if size(class) <= SMALL { 1 } else { 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_smallest_that_fits() {
        assert_eq!((size(0), size(7), size(8), size(COUNT - 1)), (8, 64, 80, LARGEST));
        for bytes in 1..=LARGEST {
            let class = of(bytes);
            assert!(size(class) >= bytes, "{bytes}");
            assert!(class == 0 || size(class - 1) < bytes, "{bytes}");
        }
    }

    #[test]
    fn blocks_are_aligned() {
        for shift in 0..=16 {
            let align = 1 << shift;
            for bytes in (1..=LARGEST).step_by(7) {
                if let Some(class) = for_layout(bytes, align) {
                    assert!(size(class) >= bytes);
                    assert!(size(class).is_multiple_of(align), "{bytes} {align}");
                } else {
                    assert!(bytes.next_multiple_of(align) > LARGEST);
                }
            }
        }
    }

    #[test]
    fn rounding_wastes_a_fifth_at_most() {
        for class in 8..COUNT {
            assert!((size(class) - size(class - 1)) * 5 <= size(class));
        }
    }
}
