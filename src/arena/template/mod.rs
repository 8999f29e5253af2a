//! What an untouched page contains.

mod stored;

pub(crate) use stored::StoredImage;

use super::mapping::Mapping;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::source::{PageFunction, Source};
use crate::fault::stored::GROUP;
use crate::image::FILL_MAX;
use crate::page::{page_size, round_up};
use core::{fmt, ptr};
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// What an untouched page of an arena contains: zeroes, a repeated value, an image from bytes or a
/// file, or whatever a function makes of it.
///
/// Cloning shares the template's memory, so one template serves any number of arenas.
#[derive(Clone)]
pub struct Template(Kind);

#[derive(Clone)]
enum Kind {
    Zero,
    Repeat { buffer: Arc<Mapping>, period: usize },
    Image { image: Arc<Image> },
    Stored { image: Arc<StoredImage> },
    Generate(PageFunction),
}

/// The bytes that an arena starts with; zeroes follow.
struct Image {
    /// The whole pages, from this offset of the mapping on.
    body: Option<(Mapping, usize)>,
    /// The last page, if the image ends within one: a copy, zeroes after the image's end.
    tail: Option<Mapping>,
    len: usize,
    /// Whether the body is a file's.
    mapped: bool,
}

/// Bytes that one system call copies of a repeated value: more would hardly be faster, and cost
/// memory for each template.
const REPEAT_SPAN: usize = 64 << 10;

impl Template {
    /// Zeroes, as fresh memory has them. Reading them costs no memory.
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 40).template(lacuna::Template::zero()).reserve()?;
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    #[must_use]
    pub const fn zero() -> Self {
        Self(Kind::Zero)
    }

    /// `value`, over and over from the arena's first byte on. Its size need not divide the page's.
    ///
    /// The template takes the size of the value and 64 KiB of memory.
    ///
    /// # Errors
    /// [`ErrorKind::ZeroSized`] if the value has no size; [`ErrorKind::Os`] if there is no memory.
    ///
    /// ```
    /// let template = lacuna::Template::repeat(&[1u8, 2, 3])?;
    /// let arena = lacuna::Arena::builder(1 << 30).template(template).reserve()?;
    /// // SAFETY: the offset is within the arena.
    /// assert_eq!(unsafe { *arena.as_ptr().add(300_001) }, 2);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn repeat<T: Copy>(value: &T) -> Result<Self> {
        let period = size_of::<T>();
        if period == 0 {
            return Err(Error::new(Operation::Template, ErrorKind::ZeroSized));
        }
        let too_long = Error::new(Operation::Template, ErrorKind::TooLong).value(period);
        let len = period.checked_add(REPEAT_SPAN.max(page_size())).ok_or(too_long)?;
        let buffer = Mapping::zeroed(len)?;
        // SAFETY: the value has so many bytes, and the buffer is new.
        unsafe { repeat_into(&buffer, ptr::from_ref(value).cast::<u8>(), period) };
        Ok(Self(match is_zero(&buffer, period) {
            true => Kind::Zero,
            false => Kind::Repeat { buffer: Arc::new(buffer), period },
        }))
    }

    /// A copy of `bytes` at the arena's start, and zeroes after it.
    ///
    /// # Errors
    /// [`ErrorKind::Os`] if there is no memory for the copy.
    ///
    /// ```
    /// let template = lacuna::Template::bytes("a program's initial memory")?;
    /// let arena = lacuna::Arena::builder(4 << 30).template(template).reserve()?;
    /// // SAFETY: the byte is within the arena.
    /// assert_eq!(unsafe { *arena.as_ptr().add(2) }, b'p');
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn bytes(bytes: impl AsRef<[u8]>) -> Result<Self> {
        let bytes = bytes.as_ref();
        if bytes.is_empty() {
            return Ok(Self::zero());
        }
        let whole = bytes.len() - bytes.len() % page_size();
        let copy = |bytes: &[u8]| {
            let mapping = Mapping::zeroed(bytes.len().next_multiple_of(page_size()))?;
            // SAFETY: the mapping is new and at least as long as the bytes.
            unsafe {
                ptr::copy_nonoverlapping(bytes.as_ptr(), mapping.base().as_ptr(), bytes.len());
            }
            Ok(mapping)
        };
        let (head, rest) = bytes.split_at(whole);
        let body = if head.is_empty() { None } else { Some((copy(head)?, 0)) };
        let tail = if rest.is_empty() { None } else { Some(copy(rest)?) };
        Ok(Self::of_image(Image { body, tail, len: bytes.len(), mapped: false }))
    }

    /// The bytes of `file` at the arena's start, and zeroes after them. They are read page by page
    /// as the arena is touched.
    ///
    /// If the file begins with an image that an arena was saved to, it is brought up as
    /// [`image`](Self::image) does, or refused; [`file_range`](Self::file_range) takes bytes for bytes.
    ///
    /// The length is taken now. Should the file become shorter later, touching a page whose bytes
    /// are gone is a violation; should its bytes change, pages touched later may show the change.
    ///
    /// # Errors
    /// [`ErrorKind::TemplateUnreadable`] if it is no regular file; [`ErrorKind::Os`] if it is not
    /// open for reading or cannot be mapped; those of [`image`](Self::image) if it is one.
    ///
    /// ```
    /// let file = std::fs::File::open("Cargo.toml")?;
    /// let arena = lacuna::Arena::builder(1 << 30)
    ///     .template(lacuna::Template::file(&file)?)
    ///     .reserve()?;
    /// // SAFETY: the byte is within the arena.
    /// assert_eq!(unsafe { *arena.as_ptr() }, b'[');
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn file(file: &File) -> Result<Self> {
        let len = regular_len(file)?;
        match stored::is_image(file)? {
            true => Self::image(file),
            false => Self::file_range(file, 0..len),
        }
    }

    /// As [`file`](Self::file), but only the bytes of `range`.
    ///
    /// # Errors
    /// Those of [`file`](Self::file), and [`ErrorKind::OutOfBounds`] if the file is shorter than
    /// `range` promises or the range ends before it starts.
    pub fn file_range(file: &File, range: Range<u64>) -> Result<Self> {
        let bounds = Error::new(Operation::Template, ErrorKind::OutOfBounds)
            .range(range.start as usize, range.end as usize);
        if range.start > range.end || range.end > regular_len(file)? {
            return Err(bounds);
        }
        let len = usize::try_from(range.end - range.start).map_err(|_| bounds)?;
        let rest = len % page_size();
        let whole = len - rest;
        let body = match whole {
            0 => None,
            _ => {
                let skip = range.start as usize % page_size();
                let start = range.start - skip as u64;
                Some((Mapping::file(file.as_fd(), start, whole + skip)?, skip))
            }
        };
        let tail = match rest {
            0 => None,
            _ => Some(read_tail(file, range.start + whole as u64, rest)?),
        };
        Ok(Self::of_image(Image { body, tail, len, mapped: true }))
    }

    /// Whatever `function` writes into the page it is given, which is zeroed before: called with
    /// the number of the page, when that is first touched.
    ///
    /// Up to 64 calls run at once in each arena. A function may be called for a page that another
    /// thread resolves first, or more than once after a discard, and should give the same bytes
    /// each time.
    ///
    /// # Safety
    /// The function runs in a signal handler, possibly on an 8 KiB alternate stack and with any
    /// lock held by the interrupted code: it must be async-signal-safe (signal-safety(7)), must not
    /// unwind, must not touch an arena's untouched pages and must not fork.
    ///
    /// ```
    /// fn squares(page_index: u64, page: &mut [u8]) {
    ///     page[..8].copy_from_slice(&page_index.wrapping_mul(page_index).to_ne_bytes());
    /// }
    /// // SAFETY: the function computes and writes to the page, nothing else.
    /// let template = unsafe { lacuna::Template::generate(squares) };
    /// let arena = lacuna::Arena::builder(1 << 40).template(template).reserve()?;
    /// // SAFETY: the page is within the arena, whose pages are aligned.
    /// let value = unsafe { *arena.as_ptr().add(9 * lacuna::page_size()).cast::<u64>() };
    /// assert_eq!(value, 81);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    #[must_use]
    pub const unsafe fn generate(function: fn(page_index: u64, page: &mut [u8])) -> Self {
        Self(Kind::Generate(function))
    }

    fn of_image(image: Image) -> Self {
        Self(Kind::Image { image: Arc::new(image) })
    }

    /// Bytes that the template defines by itself; an arena must not be shorter.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Kind::Image { image } => image.len,
            Kind::Stored { image } => image.arena_len(),
            _ => 0,
        }
    }

    /// The value that an image has to repeat on pages that neither the arena nor the template has;
    /// nothing for zeroes.
    pub(crate) fn fill(&self) -> Result<&[u8]> {
        let error = |kind| Err(Error::new(Operation::Save, kind));
        match &self.0 {
            Kind::Zero | Kind::Image { .. } => Ok(&[]),
            Kind::Repeat { period, .. } if *period > FILL_MAX => {
                Err(Error::new(Operation::Save, ErrorKind::FillTooLong).value(*period))
            }
            // SAFETY: the buffer begins with the value, and `is_zero` has seen to its being bytes.
            Kind::Repeat { buffer, period } => Ok(unsafe {
                core::slice::from_raw_parts(buffer.base().as_ptr().cast_const(), *period)
            }),
            Kind::Stored { image } => Ok(image.fill()),
            Kind::Generate(_) => error(ErrorKind::TemplateIsFunction),
        }
    }

    /// Whether the template, and not its [`fill`](Self::fill), says what page `page` contains.
    pub(crate) fn defines(&self, page: usize) -> bool {
        match &self.0 {
            Kind::Image { image } => page < image.len.div_ceil(page_size()),
            Kind::Stored { image } => image.place(page).is_some(),
            _ => false,
        }
    }

    /// Ranges of pages outside of which the template [`defines`](Self::defines) none.
    pub(crate) fn defined(&self) -> Vec<Range<usize>> {
        match &self.0 {
            Kind::Image { image } => core::iter::once(0..image.len.div_ceil(page_size())).collect(),
            Kind::Stored { image } => {
                let group = |group: &u64| *group as usize * GROUP..(*group as usize + 1) * GROUP;
                image.groups().iter().map(group).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The page function, if it is one.
    pub(crate) fn function(&self) -> Option<PageFunction> {
        match self.0 {
            Kind::Generate(function) => Some(function),
            _ => None,
        }
    }

    /// What the handler needs of it. The pointers are good for as long as the template, or a
    /// clone of it, is kept. A page function needs buffers besides.
    pub(crate) fn source(&self) -> Source {
        let page = page_size();
        match &self.0 {
            Kind::Zero | Kind::Generate(_) => Source::Zero,
            Kind::Repeat { buffer, period } => Source::Repeat {
                buffer: buffer.base().as_ptr(),
                period: *period,
                span: (buffer.len() - period) / page,
            },
            Kind::Stored { image } => Source::Stored(image.view()),
            Kind::Image { image } => Source::Image {
                bytes: image.body.as_ref().map_or(ptr::null(), |(mapping, skip)| {
                    mapping.base().as_ptr().wrapping_add(*skip).cast_const()
                }),
                whole: image.len / page,
                tail: image.tail.as_ref().map_or(ptr::null(), |it| it.base().as_ptr()),
                mapped: image.mapped,
            },
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Zero => f.write_str("Template::zero"),
            Kind::Repeat { period, .. } => write!(f, "Template::repeat({period} bytes)"),
            Kind::Image { image } => write!(f, "Template::bytes({} bytes)", image.len),
            Kind::Stored { image } => {
                write!(f, "Template::image(of {} bytes)", image.arena_len())
            }
            Kind::Generate(_) => f.write_str("Template::generate"),
        }
    }
}

/// A buffer of `value`, over and over, as [`Template::repeat`] makes one.
fn repeated(value: &[u8]) -> Result<Mapping> {
    let buffer = Mapping::zeroed(value.len() + REPEAT_SPAN.max(page_size()))?;
    // SAFETY: the value has so many bytes, and the buffer is new.
    unsafe { repeat_into(&buffer, value.as_ptr(), value.len()) };
    Ok(buffer)
}

/// Fills a buffer with copies of a value, the last one of them cut.
///
/// # Safety
/// `value` points to `period` bytes, of which there is one; the buffer is longer, and the caller's.
unsafe fn repeat_into(buffer: &Mapping, value: *const u8, period: usize) {
    let (start, len) = (buffer.base().as_ptr(), buffer.len());
    // SAFETY: the buffer is longer than the value, and then than what has been written: each
    // round doubles the copies, or fills what is left.
    unsafe {
        ptr::copy_nonoverlapping(value, start, period);
        let mut done = period;
        while done < len {
            let more = done.min(len - done);
            ptr::copy_nonoverlapping(start, start.add(done), more);
            done += more;
        }
    }
}

/// The length of a regular file.
fn regular_len(file: &File) -> Result<u64> {
    let unreadable = Error::new(Operation::Template, ErrorKind::TemplateUnreadable);
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(metadata.len()),
        _ => Err(unreadable),
    }
}

/// The last bytes of an image, on a page of their own.
fn read_tail(file: &File, offset: u64, len: usize) -> Result<Mapping> {
    let mapping = Mapping::zeroed(page_size().max(round_up(len, page_size()).unwrap_or(len)))?;
    // SAFETY: the mapping is new, zeroed, and at least as long.
    let bytes = unsafe { core::slice::from_raw_parts_mut(mapping.base().as_ptr(), len) };
    match file.read_exact_at(bytes, offset) {
        Ok(()) => Ok(mapping),
        Err(_) => Err(Error::new(Operation::Template, ErrorKind::TemplateUnreadable)),
    }
}

/// Whether a buffer starts with `len` zeroes.
fn is_zero(buffer: &Mapping, len: usize) -> bool {
    let start = buffer.base().as_ptr();
    // A value's padding may be uninitialised, as the compiler sees it; in memory it is bytes.
    // SAFETY: the empty assembly stands for code that writes the buffer's bytes back as they are:
    // from here on they are initialised.
    unsafe { core::arch::asm!("/* {0} */", in(reg) start, options(nostack, preserves_flags)) };
    // SAFETY: the buffer is at least so long.
    unsafe { core::slice::from_raw_parts(start, len) }.iter().all(|&byte| byte == 0)
}
