//! What an arena is asked to be, and whether it is.

use crate::arena_interpreter::{Content, PAGES};
use lacuna::{Arena, ArenaBuilder, Errno, Error, ErrorKind, Operation, Window, page_size};
use libfuzzer_sys::arbitrary::{Result, Unstructured};

/// Address space that user programs have on any machine lies below.
const ADDRESSES: usize = 1 << 47;

/// Lengths that the address space need not have room for.
const VAST: usize = 1 << 44;

/// Numbers of bytes: little ones, those beside powers of two, and those that overflow.
pub(crate) fn number(input: &mut Unstructured<'_>) -> Result<usize> {
    let power = |input: &mut Unstructured<'_>| Ok(1usize << input.int_in_range(0..=63u8)?);
    let delta: i16 = input.arbitrary()?;
    Ok(match input.int_in_range(0..=6u8)? {
        0 => input.arbitrary()?,
        1 => usize::MAX - usize::from(delta.unsigned_abs()),
        2 => power(input)?.wrapping_add_signed(delta.into()),
        3 => power(input)?,
        4 => usize::from(delta.unsigned_abs()) * page_size(),
        _ => small(input)?,
    })
}

pub(crate) fn small(input: &mut Unstructured<'_>) -> Result<usize> {
    input.int_in_range(0..=8 << 20)
}

fn option<T>(
    input: &mut Unstructured<'_>,
    make: fn(&mut Unstructured<'_>) -> Result<T>,
) -> Result<Option<T>> {
    Ok(if input.arbitrary()? { Some(make(input)?) } else { None })
}

#[derive(Debug)]
pub(crate) struct Request {
    len: usize,
    name: String,
    pub(crate) content: Content,
    budget: Option<usize>,
    limit: Option<usize>,
    window: Window,
    huge_pages: bool,
    lending: bool,
    keep: usize,
}

impl Request {
    pub(crate) fn arbitrary(input: &mut Unstructured<'_>) -> Result<Self> {
        Ok(Self {
            len: number(input)?,
            name: input.arbitrary::<&str>()?.to_owned(),
            content: match input.int_in_range(0..=5u8)? {
                0 => Content::Repeat(input.arbitrary()?),
                1 => Content::Function,
                2 => Content::Image {
                    len: input.int_in_range(0..=PAGES * page_size())?,
                    file: input.arbitrary()?,
                },
                _ => Content::Zero,
            },
            budget: option(input, number)?,
            limit: option(input, number)?,
            window: match input.int_in_range(0..=4u8)? {
                0 => Window::Pages(input.arbitrary()?),
                1 => Window::Pages(input.int_in_range(0..=600)?),
                _ => Window::Adaptive,
            },
            huge_pages: input.arbitrary()?,
            lending: input.arbitrary()?,
            keep: number(input)?,
        })
    }

    pub(crate) fn builder(&self) -> ArenaBuilder<'_> {
        let builder = self.modest(Arena::builder(self.len)).template(self.content.template());
        let builder = self.budget.into_iter().fold(builder, ArenaBuilder::budget);
        self.limit.into_iter().fold(builder, ArenaBuilder::limit)
    }

    /// What does not bound what may be touched.
    pub(crate) fn modest<'a>(&'a self, builder: ArenaBuilder<'a>) -> ArenaBuilder<'a> {
        builder
            .name(&self.name)
            .window(self.window)
            .huge_pages(self.huge_pages)
            .lending(self.lending)
            .keep_resident(self.keep)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn image(&self) -> usize {
        if let Content::Image { len, .. } = self.content { len } else { 0 }
    }

    /// What is wrong with it apart from its length.
    fn faults(&self) -> impl Iterator<Item = ErrorKind> {
        let page = page_size();
        let rounded = self.len.checked_next_multiple_of(page);
        let past = |bytes: usize| rounded.is_some_and(|len| bytes > len);
        [
            (self.name.len() > 63, ErrorKind::NameTooLong),
            (self.window == Window::Pages(0), ErrorKind::WindowTooSmall),
            (self.budget.is_some_and(|bytes| bytes < page), ErrorKind::BudgetTooSmall),
            (self.limit.is_some_and(past), ErrorKind::LimitPastLength),
            (past(self.image()), ErrorKind::TemplateTooLong),
        ]
        .into_iter()
        .filter_map(|(wrong, kind)| wrong.then_some(kind))
    }

    /// Whether the error is one that it may get.
    pub(crate) fn explains(&self, error: &Error) -> bool {
        explains_length(error, self.len) || self.faults().any(|kind| kind == error.kind())
    }

    /// Whether an error in what [`modest`](Self::modest) sets is one that it may get.
    pub(crate) fn explains_modestly(&self, error: &Error) -> bool {
        let kind = error.kind();
        matches!(kind, ErrorKind::NameTooLong | ErrorKind::WindowTooSmall)
            && self.faults().any(|fault| fault == kind)
    }

    /// Checks that a new arena is what was asked for.
    pub(crate) fn check(&self, arena: &Arena) {
        let page = page_size();
        assert_eq!(self.faults().next(), None, "{self:?}");
        assert!(self.len > 0 && self.len <= ADDRESSES, "{self:?}");
        assert_eq!(arena.len(), self.len.next_multiple_of(page));
        assert_eq!(arena.name(), self.name);
        assert!(arena.as_ptr().addr().is_multiple_of(2 << 20));
        assert!(arena.as_ptr().addr() + arena.len() <= ADDRESSES);
        let limit = self.limit.map_or(arena.len(), |bytes| bytes.next_multiple_of(page));
        assert_eq!(arena.limit(), limit);
        let stats = arena.stats();
        assert_eq!((stats.reserved_bytes, stats.limit_bytes), (arena.len(), limit));
        assert_eq!(stats.budget_bytes, self.budget.map(|bytes| bytes - bytes % page));
        assert_eq!((stats.resident_bytes, stats.lent_bytes, stats.faults), (0, 0, 0));
        assert_eq!(arena.populated().next(), None);
    }
}

/// Whether an arena of `len` bytes may get the error on account of its length.
pub(crate) fn explains_length(error: &Error, len: usize) -> bool {
    match (error.operation(), error.kind(), error.errno()) {
        (_, ErrorKind::ZeroLength, _) => len == 0,
        (_, ErrorKind::TooLong, _) => len > isize::MAX as usize - (8 << 20),
        (Operation::Map, ErrorKind::Os, Some(Errno::ENOMEM)) => len >= VAST,
        _ => false,
    }
}
