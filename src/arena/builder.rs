//! Making arenas.

use super::mapping::{Layout, Mapping};
use super::memory::{Memory, PageSize, Plan, Sharing};
use super::registrar::REGISTRAR;
use super::template::Template;
use super::{Arena, choice, descriptors, engine, inherit, mprotect};
use crate::atomic::{AtomicU32, AtomicUsize, UnsafeCell};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::backend::Backend;
use crate::fault::ledger::{Ledger, UNBOUNDED};
use crate::fault::log::Log;
use crate::fault::region::{Counters, HUGE_ALLOWED, Name, Region};
use crate::fault::source::{Buffers, Source};
use crate::fault::tables::{self, Tables};
use crate::fault::track::{Track, Tracking};
use crate::fault::tuning::{HUGE_BUFFERS, PAGE_BUFFERS};
use crate::fault::window::Window;
use crate::fork::OnFork;
use crate::lock::Mutex;
use crate::page::{CHUNK, round_up};
use crate::uffd::Ioctls;

/// What an arena is to be; made by [`Arena::builder`], it makes the arena with
/// [`reserve`](Self::reserve).
///
/// Bad values are reported by `reserve`, so that setters can be chained.
#[derive(Clone, Debug)]
#[must_use = "nothing is reserved before `reserve`"]
pub struct ArenaBuilder<'a> {
    pub(crate) len: usize,
    name: &'a str,
    template: Template,
    budget: Option<usize>,
    limit: Option<usize>,
    window: Window,
    huge_pages: bool,
    lending: bool,
    keep_resident: usize,
    backend: Option<Backend>,
    on_fork: OnFork,
    tracking: Option<Tracking>,
    pub(super) page_size: Option<PageSize>,
    pub(super) sharing: Sharing<'a>,
}

impl<'a> ArenaBuilder<'a> {
    pub(crate) const fn new(len: usize) -> Self {
        Self {
            len,
            name: "",
            template: Template::zero(),
            budget: None,
            limit: None,
            window: Window::Adaptive,
            huge_pages: true,
            lending: true,
            keep_resident: 0,
            backend: None,
            on_fork: OnFork::Inherit,
            tracking: None,
            page_size: None,
            sharing: Sharing::No,
        }
    }

    /// A name for diagnostics, at most 63 bytes; empty by default.
    pub const fn name(mut self, name: &'a str) -> Self {
        self.name = name;
        self
    }

    /// The same without a name, to be kept.
    pub(crate) fn unnamed(self) -> ArenaBuilder<'static> {
        ArenaBuilder {
            len: self.len,
            name: "",
            template: self.template,
            budget: self.budget,
            limit: self.limit,
            window: self.window,
            huge_pages: self.huge_pages,
            lending: self.lending,
            keep_resident: self.keep_resident,
            backend: self.backend,
            on_fork: self.on_fork,
            tracking: self.tracking,
            page_size: self.page_size,
            sharing: Sharing::No,
        }
    }

    /// What untouched pages contain; zeroes by default.
    pub fn template(mut self, template: Template) -> Self {
        self.template = template;
        self
    }

    /// The most bytes that may be resident and lent together, rounded down to whole pages; without
    /// a budget, whatever the system has. A touch that would exceed it is a violation.
    ///
    /// Pages that a window or a huge page installs ahead of their first touch count too. With
    /// [`Window::Adaptive`] they are few where accesses are scattered, and a stream takes at most an
    /// eighth of what is left; with `Window::Pages(1)` there are none.
    pub const fn budget(mut self, bytes: usize) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// The prefix of the reservation, in bytes rounded up to whole pages, that may be touched; all
    /// of it by default. See [`Arena::set_limit`].
    pub const fn limit(mut self, bytes: usize) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// How many pages one fault resolves; [`Window::Adaptive`] by default.
    pub const fn window(mut self, window: Window) -> Self {
        self.window = window;
        self
    }

    /// Whether a chunk that is filled whole, by a stream or by [`Arena::populate`], may be filled
    /// with a 2 MiB page; true by default. It is several times cheaper than small pages, needs no
    /// setting of the administrator's beyond transparent huge pages not being off, and Linux 6.8.
    ///
    /// Images mapped from a file, whose pages are read one by one, are filled with small pages.
    pub const fn huge_pages(mut self, allowed: bool) -> Self {
        self.huge_pages = allowed;
        self
    }

    /// Whether a 2 MiB chunk of a zero template, or of a [shared](Template::shared) image, that keeps
    /// being touched here and there may be *lent*: handed to the kernel, which fills it page by page
    /// without a signal; true by default.
    ///
    /// A lent chunk is charged to the budget as a whole, and counts as `lent_bytes` until
    /// [`Arena::measure`] looks. Lending takes at most half the budget and a quarter of the mappings
    /// that the process may have (`vm.max_map_count`); when the budget is needed, chunks are
    /// recalled, which takes a descriptor for a moment: without any (`RLIMIT_NOFILE`) they stay
    /// charged as a whole. Without lending, each page that is touched alone costs a signal.
    ///
    /// It goes with [`Window::Adaptive`]; an arena with a fixed window lends nothing.
    pub const fn lending(mut self, allowed: bool) -> Self {
        self.lending = allowed;
        self
    }

    /// How many bytes of what is present, rounded down to whole pages, [`Arena::reset`] may keep and
    /// restore in place rather than give back; none by default. For an arena that is reset over and
    /// over and touched in much the same places each time.
    ///
    /// What is kept stays resident and charged to the budget. Images mapped from a file, which may be
    /// cut short at any time, are always given back.
    pub const fn keep_resident(mut self, bytes: usize) -> Self {
        self.keep_resident = bytes;
        self
    }

    /// How the arena learns of first touches. By default it is what the environment variable
    /// `LACUNA_BACKEND` says (`userfaultfd` or `mprotect`), or else userfaultfd where that is allowed
    /// and [`Backend::Mprotect`] where it is not.
    ///
    /// ```
    /// use lacuna::{Arena, Backend};
    ///
    /// let arena = Arena::builder(1 << 30).backend(Backend::Mprotect).reserve()?;
    /// assert_eq!(arena.backend(), Backend::Mprotect);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub const fn backend(mut self, backend: Backend) -> Self {
        self.backend = Some(backend);
        self
    }

    /// How the arena learns of writes since [`Arena::checkpoint`]. By default it is
    /// [`Tracking::Kernel`] where the kernel has that, since Linux 6.7, and [`Tracking::Signal`] where it
    /// has not. An arena without a checkpoint is the same with both.
    ///
    /// The first arena that asks for `Tracking::Signal` where it is not the default takes another
    /// descriptor of the process's.
    ///
    /// ```
    /// use lacuna::{Arena, Backend, Tracking};
    ///
    /// let builder = Arena::builder(1 << 30).backend(Backend::Userfaultfd);
    /// let arena = builder.tracking(Tracking::Signal).reserve()?;
    /// assert_eq!(arena.tracking(), Tracking::Signal);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub const fn tracking(mut self, how: Tracking) -> Self {
        self.tracking = Some(how);
        self
    }

    /// What a forked child gets of the arena; [`OnFork::Inherit`] by default. It holds for the
    /// child's children as well: they get of the child's arena what the child got of this one.
    ///
    /// The kernel empties what is not inherited (madvise(2) MADV_WIPEONFORK, since Linux 4.14); of a
    /// [shared](Template::shared) image, the child does, in its fork hook.
    /// A [`Heap`](crate::Heap) needs an arena that is inherited, since what a child inherits in any
    /// case, its own variables, leads to the heap's blocks.
    ///
    /// ```
    /// let scratch = lacuna::Arena::builder(1 << 30)
    ///     .template(lacuna::Template::repeat(&7u8)?)
    ///     .on_fork(lacuna::OnFork::Wipe)
    ///     .reserve()?;
    /// // SAFETY: the first byte is the arena's, and nobody holds a reference to it; the child only
    /// // reads it, and exits.
    /// unsafe {
    ///     scratch.as_ptr().write(1);
    ///     let child = libc::fork();
    ///     if child == 0 {
    ///         libc::_exit(i32::from(scratch.as_ptr().read()));
    ///     }
    ///     let mut status = 0;
    ///     libc::waitpid(child, &raw mut status, 0);
    ///     assert_eq!(libc::WEXITSTATUS(status), 7);
    ///     assert_eq!(scratch.as_ptr().read(), 1);
    /// }
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub const fn on_fork(mut self, what: OnFork) -> Self {
        self.on_fork = what;
        self
    }

    /// Reserves the arena. It costs address space, a few system calls whatever its size, and no
    /// memory to speak of.
    ///
    /// If somebody has reset SIGBUS to its default since the first arena, or ignores it, lacuna's
    /// handler is put in front again; another handler is left there, see [`take_front`](crate::take_front).
    ///
    /// # Errors
    /// - [`ErrorKind::ZeroLength`], [`ErrorKind::TooLong`]: no such length.
    /// - [`ErrorKind::NameTooLong`], [`ErrorKind::BudgetTooSmall`] (less than a page),
    ///   [`ErrorKind::LimitPastLength`], [`ErrorKind::WindowTooSmall`] (no page),
    ///   [`ErrorKind::TemplateTooLong`]: no such value.
    /// - [`ErrorKind::UnknownBackend`]: `LACUNA_BACKEND` names none.
    /// - [`ErrorKind::Os`] with [`Operation::Open`]: userfaultfd was asked for, and is denied.
    /// - [`ErrorKind::Os`] with [`Operation::OpenMemory`]: without userfaultfd, the template cannot
    ///   be written.
    /// - [`ErrorKind::Os`] with [`Operation::Map`]: the address space is not to be had. With
    ///   `EAGAIN`: the process locks its memory, mlockall(2), and `RLIMIT_MEMLOCK` is too low.
    /// - [`ErrorKind::Os`] with `EMFILE`: no descriptor is left (`RLIMIT_NOFILE`).
    /// - [`ErrorKind::Unsupported`]: the kernel is older than 5.14.
    /// - [`ErrorKind::NoHugePages`]: huge pages were asked for, and the pool is empty.
    /// - [`ErrorKind::NeedsUserfaultfd`]: huge pages or shared memory were asked for, and the arena
    ///   would have [`Backend::Mprotect`].
    /// - [`ErrorKind::NotMemory`], [`ErrorKind::MemoryTooShort`], [`ErrorKind::PageSizeMismatch`]: the
    ///   file given to [`memfd`](Self::memfd) will not do.
    /// - [`ErrorKind::NotPrivate`]: [`OnFork::Wipe`] of shared memory.
    /// - [`ErrorKind::Conflict`]: a template that arenas share ([`Template::shared`]), and huge pages or
    ///   shared memory; or an image that an arena was saved to, and huge pages.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: this process is a child in
    ///   which arenas do not work; see [`Arena`].
    ///
    /// ```
    /// let arena = lacuna::Arena::builder(1 << 40)
    ///     .name("index")
    ///     .template(lacuna::Template::repeat(&u32::MAX)?)
    ///     .budget(64 << 20)
    ///     .limit(1 << 30)
    ///     .reserve()?;
    /// assert_eq!(arena.len(), 1 << 40);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn reserve(self) -> Result<Arena> {
        let plan = Plan::new(self.page_size, self.sharing)?;
        let page_shift = plan.page_shift();
        let layout = Layout::new(self.len, 1 << page_shift)?;
        let settings = self.check(&layout, &plan)?;
        let backend = choice::start(self.backend)?;
        if backend == Backend::Mprotect && !plan.is_ordinary() {
            return Err(Error::new(Operation::Reserve, ErrorKind::NeedsUserfaultfd));
        }

        let tables_layout = tables::Layout::new(layout.span / CHUNK);
        let tables = Mapping::zeroed(tables_layout.size)?;
        let (buffers, source) = self.source(page_shift)?;
        let reservation = Mapping::reserve(layout.total)?;
        let offset = layout.offset(reservation.base().as_ptr().expose_provenance());
        // SAFETY: the offset lies within the mapping.
        let base = unsafe { reservation.base().add(offset) };
        let (tracking, is_second) = descriptors::tracking(self.tracking, backend)?;
        let Memory { backing, file } = plan.map(self.name, &reservation, offset, &layout)?;
        let shared = self.overlay(&reservation, offset)?;
        let moves = match backend {
            Backend::Userfaultfd => {
                if backing.is_ordinary() {
                    reservation.open(offset, layout.len)?;
                    reservation.forbid_huge_pages(offset, layout.len)?;
                }
                engine::register(base.as_ptr().addr(), layout.len, shared, is_second)?
                    .contains(Ioctls::MOVE)
            }
            Backend::Mprotect => {
                if source.is_written() {
                    mprotect::start_writing()?;
                }
                mprotect::prepare(&reservation, 0)?;
                if shared > 0 {
                    mprotect::prepare(&reservation, offset)?;
                }
                true
            }
        };
        let own = offset + shared..offset + layout.len;
        inherit::prepare(self.on_fork, backing, &reservation, own, &tables)?;
        let keeps = source.is_ordinary() && !backing.is_shared();
        let keep = if keeps { self.keep_resident >> page_shift } else { 0 };
        let huge = self.huge_pages && moves && source.is_ordinary() && backing.is_ordinary();

        let region = Region {
            backend,
            backing,
            base: base.as_ptr().addr(),
            pages: layout.len >> page_shift,
            page_shift,
            budget: settings.budget,
            window: self.window,
            source,
            name: settings.name,
            lends: self.lends(&source) && backing.is_ordinary(),
            huge: AtomicU32::new(if huge { HUGE_ALLOWED } else { 0 }),
            tracking,
            is_second,
            track: Track::new(),
            scattered: AtomicU32::new(u32::from(keep == 0 || matches!(source, Source::Zero))),
            log: Log::new(),
            handed_over: AtomicU32::new(0),
            hand: AtomicUsize::new(0),
            limit: AtomicUsize::new(settings.limit),
            on_fork: self.on_fork,
            forbidden: AtomicU32::new(0),
            mappings: AtomicUsize::new(0),
            // SAFETY: the mapping is zeroed, page-aligned, as large as the layout says, and goes
            // after the region does.
            tables: unsafe { Tables::new(tables.base(), tables_layout) },
            ledger: Ledger::new(),
            counters: Counters::default(),
        };
        let seat = REGISTRAR.lock().publish(region, layout.span)?;
        Ok(Arena {
            seat,
            base,
            span: layout.span,
            keep_resident: keep,
            checkpoint: UnsafeCell::new(None),
            resets: AtomicU32::new(0),
            recording: Mutex::new(None),
            _reservation: reservation,
            _tables: tables,
            file,
            _content: buffers,
            _template: self.template,
        })
    }

    /// Maps the whole pages of a shared image over the start of the arena, which is at `offset`; tells
    /// how many bytes they are.
    fn overlay(&self, reservation: &Mapping, offset: usize) -> Result<usize> {
        match self.template.shared_image().and_then(|image| image.file()) {
            Some((file, len)) => reservation.overlay(offset, len, file).map(|()| len),
            None => Ok(0),
        }
    }

    /// The handler's view of the template, and what that needs besides.
    fn source(&self, page_shift: u32) -> Result<(Content, Source)> {
        let size = 1 << page_shift;
        let Some(function) = self.template.function() else {
            let (source, memory) = self.template.source(size)?;
            return Ok((Content { _buffers: None, _memory: memory }, source));
        };
        // Of huge pages fewer: they stay once they were used.
        let count =
            if page_shift == crate::page::page_shift() { PAGE_BUFFERS } else { HUGE_BUFFERS };
        let pages = Mapping::zeroed(count * size)?;
        // SAFETY: the mapping is used by these buffers alone, and goes after them.
        let buffers = Box::new(unsafe { Buffers::new(pages.base().as_ptr(), size, count) });
        let source = Source::Generate { function, buffers: &raw const *buffers };
        Ok((Content { _buffers: Some(buffers), _memory: Some(pages) }, source))
    }

    /// A fixed window says how many pages a fault resolves; lending would resolve others.
    fn lends(&self, source: &Source) -> bool {
        let by_kernel = matches!(source, Source::Zero | Source::Shared { .. });
        self.lending && self.window == Window::Adaptive && by_kernel
    }

    /// Checks the values and converts them to pages.
    fn check(&self, layout: &Layout, plan: &Plan<'_>) -> Result<Settings> {
        let error = |kind, value| Err(Error::new(Operation::Reserve, kind).value(value));
        let Some(name) = Name::new(self.name) else {
            return error(ErrorKind::NameTooLong, self.name.len());
        };
        if self.window == Window::Pages(0) {
            return error(ErrorKind::WindowTooSmall, 0);
        }
        if self.on_fork == OnFork::Wipe && plan.is_shared() {
            return Err(Error::new(Operation::Reserve, ErrorKind::NotPrivate));
        }
        let is_stored = self.template.stored().is_some();
        if self.template.shared_image().is_some() && !plan.is_ordinary()
            || is_stored && plan.is_huge()
        {
            return Err(Error::new(Operation::Reserve, ErrorKind::Conflict));
        }
        if self.template.len() > layout.len {
            return error(ErrorKind::TemplateTooLong, self.template.len());
        }
        let shift = plan.page_shift();
        let budget = match self.budget {
            Some(bytes) if bytes >> shift == 0 => return error(ErrorKind::BudgetTooSmall, bytes),
            Some(bytes) => (bytes >> shift) as u64,
            None => UNBOUNDED,
        };
        let limit = self.limit.unwrap_or(layout.len);
        match limit_pages(limit, layout.len, shift) {
            Some(limit) => Ok(Settings { name, budget, limit }),
            None => error(ErrorKind::LimitPastLength, limit),
        }
    }
}

/// Checked values, in pages.
struct Settings {
    name: Name,
    budget: u64,
    limit: usize,
}

/// Memory that an arena's content is copied from, beyond the template's own: a page function's buffers
/// and the pages they stand for, or what takes a huge page to hold. Dropped in this order.
pub(crate) struct Content {
    _buffers: Option<Box<Buffers>>,
    _memory: Option<Mapping>,
}

/// A limit in pages; `None` if it lies past `len`.
pub(crate) fn limit_pages(bytes: usize, len: usize, page_shift: u32) -> Option<usize> {
    let bytes = round_up(bytes, 1 << page_shift)?;
    (bytes <= len).then_some(bytes >> page_shift)
}
