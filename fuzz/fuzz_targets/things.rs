//! What is made besides arenas: templates of parts of files, sparse arrays, heaps.

use crate::arena_interpreter::Content;
use crate::request::{Request, explains_length, number, small};
use crate::support::{bytes, file_of, noise};
use crate::{PRESENT, say};
use lacuna::{Arena, ErrorKind, Heap, SparseArray, Template, page_size};
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use std::alloc::{GlobalAlloc, Layout};

const CHUNK: usize = 2 << 20;

/// A part of a file shows as it is, or is refused.
pub(crate) fn templates(input: &mut Unstructured<'_>) -> Result<()> {
    let content = noise(input.int_in_range(0..=5 * page_size())?, 9);
    let file = file_of(&content);
    let mut position =
        || Ok(if input.arbitrary()? { small(input)? % 20_000 } else { number(input)? });
    let (start, end) = (position()?, position()?);
    let template = match Template::file_range(&file, start as u64..end as u64) {
        Ok(template) => template,
        Err(error) => {
            assert_eq!(say(error), ErrorKind::OutOfBounds);
            assert!(start > end || end > content.len());
            return Ok(());
        }
    };
    let part = &content[start..end];
    let arena = Arena::builder(part.len() + 1).template(template).reserve().unwrap();
    assert!(bytes(&arena, 0..part.len()) == part, "{start}..{end}");
    assert!(bytes(&arena, part.len()..arena.len()).iter().all(|&byte| byte == 0));
    Ok(())
}

/// An array of any length, with an element of `T`'s size.
pub(crate) fn array<T: Copy + PartialEq + std::fmt::Debug>(
    request: &Request,
    value: T,
    input: &mut Unstructured<'_>,
) -> Result<()> {
    let len = request.len();
    let mut array = match SparseArray::filled_in(len, value, |arena| request.modest(arena)) {
        Ok(array) => array,
        Err(error) => {
            let kind = say(error);
            let bytes = len.saturating_mul(size_of::<T>());
            let right = explains_length(&error, bytes) || request.explains_modestly(&error);
            assert!(right, "{kind:?}, {request:?}");
            return Ok(());
        }
    };
    assert_eq!(array.len(), len);
    let other = array[number(input)? % len];
    assert_eq!((array[0], other, array[len - 1]), (value, value, value));
    while !input.is_empty() {
        let (start, count) = (number(input)?, small(input)?);
        let range = start..start.wrapping_add(count);
        let wrong = (range.start > range.end || range.end > len).then_some(ErrorKind::OutOfBounds);
        let result = match input.arbitrary()? {
            true if wrong.is_none() && count.saturating_mul(size_of::<T>()) > PRESENT => continue,
            true => array.populate(range),
            false => array.discard(range),
        };
        assert_eq!(result.map_err(say).err(), wrong);
        assert!(array.populated().all(|run| run.start < run.end && run.end <= len));
        assert_eq!(array[start % len], value);
    }
    array.reset().unwrap();
    Ok(())
}

/// A heap in the arena's place, and blocks of any layout.
pub(crate) fn heap(arena: Arena, request: &Request, input: &mut Unstructured<'_>) -> Result<()> {
    let (limit, budget) = (arena.limit(), arena.stats().budget_bytes);
    let zero = matches!(request.content, Content::Zero);
    let heap = match Heap::new(arena) {
        Ok(heap) => heap,
        Err(error) => {
            match say(error) {
                ErrorKind::TemplateNotZero => assert!(!zero, "{request:?}"),
                kind => assert!(kind == ErrorKind::TooShort && limit < CHUNK, "{kind:?}"),
            }
            return Ok(());
        }
    };
    assert!(limit >= CHUNK);
    assert!(heap.stats().reserved_bytes <= limit && heap.stats().budget_bytes == budget);
    while !input.is_empty() {
        let (size, align) = (number(input)?, 1 << input.int_in_range(0..=63u8)?);
        let Ok(layout) = Layout::from_size_align(size.max(1), align) else { continue };
        // SAFETY: the layout has a size.
        let block = unsafe { heap.alloc(layout) };
        if block.is_null() {
            continue;
        }
        assert!(block.addr().is_multiple_of(layout.align()) && layout.size() <= limit);
        // SAFETY: the block is so long, and freed once, unless it is left to the heap.
        unsafe {
            block.write(1);
            block.add(layout.size() - 1).write(1);
            if input.arbitrary()? {
                heap.dealloc(block, layout);
            }
        }
        let stats = heap.stats();
        assert!(budget.is_none_or(|most| stats.resident_bytes + stats.lent_bytes <= most));
    }
    Ok(())
}
