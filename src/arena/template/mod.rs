//! What an untouched page contains.

mod plain;
mod repeat;
mod stored;

pub(crate) use stored::StoredImage;

use super::mapping::Mapping;
use super::shared::SharedImage;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::source::{PageFunction, Source};
use crate::fault::stored::GROUP;
use crate::image::FILL_MAX;
use crate::page::page_size;
use core::{fmt, ptr};
use plain::Image;
use std::fs::File;
use std::ops::Range;
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
    Shared { image: Arc<SharedImage> },
    Stored { image: Arc<StoredImage> },
    Generate(PageFunction),
}

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
        // SAFETY: the value is so long.
        let buffer = unsafe { repeat::buffer(ptr::from_ref(value).cast(), period) }?;
        Ok(Self(match repeat::is_zero(&buffer, period) {
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
        Ok(Self(Kind::Image { image: Arc::new(Image::copied(bytes)?) }))
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
        Ok(Self(Kind::Image { image: Arc::new(Image::mapped(file, range.start, len)?) }))
    }

    /// Whatever `function` writes into the page it is given, which is zeroed before: called with
    /// the number of the base page ([`page_size`](crate::page_size)), when that is first touched.
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

    /// The same content, in memory that any number of arenas have in common, page by page until they
    /// write: a thousand arenas with an image of 16 MiB take 16 MiB, and what they have written.
    ///
    /// An arena maps the image's whole pages privately from a file in memory (memfd_create(2)), which
    /// is sealed: nobody can change it or cut it short. Reading a page of it shows the file's
    /// (`UFFDIO_CONTINUE`, since Linux 5.14), which counts as lent until the arena writes there. Pages
    /// of zeroes take no memory in the file either.
    ///
    /// The image is read here, whole, also one that an arena was saved to. Other templates than
    /// images have their memory in common anyway (zeroes), or have no memory that could be shared
    /// (an error).
    ///
    /// In such an arena, huge pages come only after the image; and what is said of
    /// [`OnFork::Wipe`](crate::OnFork::Wipe) and `Forbid` is done by the child, in its fork hook.
    ///
    /// # Errors
    /// - [`ErrorKind::NotShareable`]: it is a repeated value, or a page function, or an image of an
    ///   arena with one.
    /// - [`ErrorKind::TemplateUnreadable`]: the image's file shrank, or its device failed.
    /// - [`ErrorKind::Os`]: there is no memory, or no descriptor left.
    ///
    /// ```
    /// use lacuna::{Arena, Template};
    ///
    /// let template = Template::bytes(vec![7u8; 1 << 20])?.shared()?;
    /// let arenas = [(); 10].map(|()| Arena::builder(1 << 30).template(template.clone()).reserve());
    /// for arena in arenas {
    ///     let arena = arena?;
    ///     // SAFETY: the byte is the arena's, and nobody else uses it.
    ///     assert_eq!(unsafe { arena.as_ptr().add(1 << 19).read() }, 7);
    ///     // No memory of the arena's own.
    ///     assert_eq!(arena.stats().resident_bytes, 0);
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn shared(self) -> Result<Self> {
        Ok(match &self.0 {
            Kind::Zero | Kind::Shared { .. } => self,
            Kind::Image { image } => {
                let (source, _memory) = image.source(page_size())?;
                let image = SharedImage::new(&source, image.len)?;
                Self(Kind::Shared { image: Arc::new(image) })
            }
            Kind::Stored { image } if image.fill().is_empty() => {
                let source = Source::Stored(image.view());
                let image = SharedImage::new(&source, image.defined_len())?;
                Self(Kind::Shared { image: Arc::new(image) })
            }
            Kind::Repeat { .. } | Kind::Generate(_) | Kind::Stored { .. } => {
                return Err(Error::new(Operation::Template, ErrorKind::NotShareable));
            }
        })
    }

    /// What arenas map of it, if they do.
    pub(crate) fn shared_image(&self) -> Option<&SharedImage> {
        match &self.0 {
            Kind::Shared { image } => Some(image),
            _ => None,
        }
    }

    /// Bytes that the template defines by itself; an arena must not be shorter.
    pub(crate) fn len(&self) -> usize {
        match &self.0 {
            Kind::Image { image } => image.len,
            Kind::Shared { image } => image.len,
            Kind::Stored { image } => image.arena_len(),
            _ => 0,
        }
    }

    /// The value that an image has to repeat on pages that neither the arena nor the template has;
    /// nothing for zeroes.
    pub(crate) fn fill(&self) -> Result<&[u8]> {
        let error = |kind| Err(Error::new(Operation::Save, kind));
        match &self.0 {
            Kind::Zero | Kind::Image { .. } | Kind::Shared { .. } => Ok(&[]),
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
            Kind::Image { .. } | Kind::Shared { .. } => page < self.len().div_ceil(page_size()),
            Kind::Stored { image } => image.place(page).is_some(),
            _ => false,
        }
    }

    /// Ranges of pages outside of which the template [`defines`](Self::defines) none.
    pub(crate) fn defined(&self) -> Vec<Range<usize>> {
        match &self.0 {
            Kind::Image { .. } | Kind::Shared { .. } => {
                core::iter::once(0..self.len().div_ceil(page_size())).collect()
            }
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

    /// What the handler needs of it, for pages of `page` bytes, and memory that this takes besides.
    /// The pointers are good for as long as both are kept, or a clone of the template. A page function
    /// needs buffers.
    pub(crate) fn source(&self, page: usize) -> Result<(Source, Option<Mapping>)> {
        match &self.0 {
            Kind::Zero | Kind::Generate(_) => Ok((Source::Zero, None)),
            Kind::Repeat { buffer, period } => {
                let start = buffer.base().as_ptr();
                let span = (buffer.len() - period) / page;
                if span > 0 {
                    return Ok((Source::Repeat { buffer: start, period: *period, span }, None));
                }
                // SAFETY: the buffer is longer than the value.
                let own = unsafe { repeat::filled(start, *period, page) }?;
                let buffer = own.base().as_ptr();
                Ok((Source::Repeat { buffer, period: *period, span: 1 }, Some(own)))
            }
            Kind::Image { image } => image.source(page),
            Kind::Shared { image } => Ok((image.source(), None)),
            Kind::Stored { image } => Ok((Source::Stored(image.view()), None)),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Zero => f.write_str("Template::zero"),
            Kind::Repeat { period, .. } => write!(f, "Template::repeat({period} bytes)"),
            Kind::Image { image } => write!(f, "Template::bytes({} bytes)", image.len),
            Kind::Shared { image } => write!(f, "Template::bytes({} bytes).shared", image.len),
            Kind::Stored { image } => {
                write!(f, "Template::image(of {} bytes)", image.arena_len())
            }
            Kind::Generate(_) => f.write_str("Template::generate"),
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
