//! Recording the order of first touches.

use super::mapping::Mapping;
use super::registrar::REGISTRAR;
use super::trace::Trace;
use super::{Arena, inherit};
use crate::atomic::{AtomicU64, Ordering, fence};
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::fault::log::{Closed, decode};
use crate::page::{page_size, round_up};
use crate::sys::pause;

impl Arena {
    /// Starts to record the order in which pages are touched first, to [`replay`](Self::replay) it in
    /// the next run: most programs touch the same pages in much the same order each time they start.
    ///
    /// `most` is how many touches there is room for, at 8 bytes each, which are memory from now on.
    /// When they are used up, recording ends by itself and the program goes on as without it
    /// ([`Trace::is_complete`] tells).
    ///
    /// What is recorded is what was touched, not what a window guessed: **while it goes on, each
    /// fault resolves one page**, whatever the arena's [`Window`](crate::Window), no chunk is filled
    /// with a huge page, and none is lent (those that are, are recalled now). So the recorded run is
    /// slower. Not recorded are pages that are present already and those that
    /// [`populate`](Self::populate) makes present; a page that is read first counts as read, whatever
    /// comes later. So start it right after the arena is reserved.
    ///
    /// A forked child does not record: its recording has ended, without a trace, and it may start one.
    ///
    /// # Errors
    /// - [`ErrorKind::AlreadyRecording`]: it has been started, and not stopped.
    /// - [`ErrorKind::ZeroLength`], [`ErrorKind::TooLong`]: no such number of touches.
    /// - [`ErrorKind::Os`]: no memory for them; or a lent chunk could not be recalled, as in
    ///   [`set_limit`](Self::set_limit). Nothing is recorded then.
    /// - [`ErrorKind::NotInherited`]: a forked child must not touch the arena.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see [`Arena`].
    ///
    /// ```
    /// use lacuna::{Access, Arena, page_size};
    ///
    /// let arena = Arena::builder(1 << 30).reserve()?;
    /// arena.start_recording(1000)?;
    /// // SAFETY: the bytes are within the arena, and nobody else uses it.
    /// unsafe {
    ///     arena.as_ptr().add(1 << 20).write(1);
    ///     arena.as_ptr().read_volatile();
    /// }
    /// let trace = arena.stop_recording()?;
    ///
    /// let page = page_size();
    /// let touched: Vec<_> = trace.iter().map(|it| (it.range, it.access)).collect();
    /// assert_eq!(touched, [(1 << 20..(1 << 20) + page, Access::Write), (0..page, Access::Read)]);
    /// # Ok::<(), lacuna::Error>(())
    /// ```
    pub fn start_recording(&self, most: usize) -> Result<()> {
        self.check_inherited(Operation::Record)?;
        let error = |kind| Error::new(Operation::Record, kind).value(most);
        if most == 0 {
            return Err(error(ErrorKind::ZeroLength));
        }
        let bytes = most.checked_mul(size_of::<AtomicU64>()).ok_or(error(ErrorKind::TooLong))?;
        let slots = map_slots(bytes)?;
        // It keeps others from starting and stopping; and from forking, so that no child finds the
        // recording locked.
        let registrar = REGISTRAR.lock();
        let mut recording = self.recording.lock();
        if self.region().log.is_in_use() {
            return Err(error(ErrorKind::AlreadyRecording));
        }
        // SAFETY: the slots are kept until the log is closed, or the arena gone; the lock is held.
        unsafe { self.region().log.open(slots.base().as_ptr().cast(), most) };
        *recording = Some(slots);
        drop((recording, registrar));
        // Pairs with the fence in `lend`: a chunk that is being lent by a fault that has not seen the log
        // open is marked.
        fence(Ordering::SeqCst);
        match self.region().lends {
            true => self.recall_from(Operation::Record, 0).inspect_err(|_| {
                let _ = self.stop_recording();
            }),
            false => Ok(()),
        }
    }

    /// Ends what [`start_recording`](Self::start_recording) began: what was recorded. From now on
    /// windows, huge pages and lending are as they were.
    ///
    /// # Errors
    /// - [`ErrorKind::NotRecording`]: it was not started in this process.
    /// - [`ErrorKind::ForkedWithoutHooks`], [`ErrorKind::NotRearmed`]: see [`Arena`].
    pub fn stop_recording(&self) -> Result<Trace> {
        inherit::check(Operation::Record)?;
        let (slots, closed) = {
            // As in `start_recording`.
            let _registrar = REGISTRAR.lock();
            let mut recording = self.recording.lock();
            (recording.take(), self.region().log.close(|| pause(1_000)))
        };
        match (slots, closed) {
            (Some(slots), Some(closed)) => Ok(self.trace(&slots, closed)),
            _ => Err(Error::new(Operation::Record, ErrorKind::NotRecording)),
        }
    }

    /// What was recorded in `slots`.
    fn trace(&self, slots: &Mapping, closed: Closed) -> Trace {
        let slots = slots.base().cast::<AtomicU64>().as_ptr().cast_const();
        // SAFETY: the log has written so many, and writes no more.
        let slots = unsafe { core::slice::from_raw_parts(slots, closed.written) };
        let (pages, shift) = (self.region().pages, self.region().page_shift);
        // Relaxed: the log was closed.
        let touches = slots.iter().map(|slot| decode(slot.load(Ordering::Relaxed)));
        Trace::of(touches, pages, shift, closed.complete)
    }
}

/// Memory for a log of so many bytes, all of it there: the handler writes it.
fn map_slots(bytes: usize) -> Result<Mapping> {
    let too_long = Error::new(Operation::Record, ErrorKind::TooLong).value(bytes);
    let bytes = round_up(bytes, page_size()).ok_or(too_long)?;
    let slots = Mapping::zeroed(bytes)?;
    // A child's recording has ended: its copy is nobody's.
    slots.wipe_on_fork(0, bytes)?;
    slots.populate()?;
    Ok(slots)
}
