//! Touches that must not be resolved: one line on stderr, then death by the signal they raised.

use super::decode::Access;
use super::freed::Freed;
use super::region::{NAME_MAX, Name, Region};
use super::signals::Signal;
use crate::atomic::{AtomicPtr, AtomicU32, Ordering, UnsafeCell};
use core::{fmt, mem, ptr};
use nix::errno::Errno;

/// Why a touch was not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Bound {
    /// The page lies past the arena's limit, given in bytes.
    Limit(usize),
    /// The arena's budget, given in bytes, is full.
    Budget(usize),
    /// The page is poisoned, by [`Arena::poison`](crate::Arena::poison), and so are those around it, from
    /// byte `start` of the arena to before `end`.
    Poisoned {
        /// The first byte.
        start: usize,
        /// One past the last.
        end: usize,
    },
    /// The byte lies in a block of a heap that was freed, `into` bytes from the block's start: see
    /// [`Lacuna::poison_freed`](crate::Lacuna::poison_freed).
    Freed {
        /// Bytes of the block.
        size: usize,
        /// Bytes from its start.
        into: usize,
    },
    /// The template's bytes for the page cannot be read: its file shrank, or its device failed.
    TemplateUnreadable,
    /// The kernel has no memory for the page; or, without userfaultfd, no mapping (`vm.max_map_count`).
    OutOfMemory,
    /// No huge page is left in the system's pool (`vm.nr_hugepages`,
    /// `vm.nr_overcommit_hugepages`): for the page, or for a copy of one that is still shared with a
    /// forked process.
    NoHugePages,
    /// The file that the arena shares with other processes ends before the page: somebody has cut it
    /// short.
    MemoryCutShort,
    /// This is a forked child, which must not touch the arena:
    /// [`OnFork::Forbid`](crate::OnFork::Forbid).
    NotInherited,
    /// This process was forked without the C library's fork hooks, by a raw clone(2): arenas do not
    /// work in it. It is rare that such a touch is noticed at all; see [`Arena`](crate::Arena).
    ForkedWithoutHooks,
    /// The page cannot be made accessible: it was marked as poisoned, write-protected or unregistered by
    /// somebody else. The error is the last one that the kernel gave.
    Unresolvable(Errno),
}

/// Why a fault was not resolved, in a register: the handler has little stack. The rest of what a [`Bound`]
/// says is looked up when there is a violation to explain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Limit,
    Budget,
    Poisoned,
    TemplateUnreadable,
    OutOfMemory,
    ForkedWithoutHooks,
    Unresolvable(Errno),
    /// The page is there and protected by a checkpoint: what it holds has to be saved before it is written.
    /// A violation if there is no memory for that.
    Protected,
    /// The page is there, and somebody else has changed its protection, as collectors of garbage and
    /// makers of guards do: the fault is theirs.
    Foreign,
}

impl Refusal {
    /// What it was, of a touch at `address`; `None` if it is no violation.
    pub(crate) fn bound(self, region: &Region, address: usize) -> Option<Bound> {
        let bytes = |pages: usize| pages.wrapping_shl(region.page_shift);
        let is_cut_short = || region.backing.ends_before(address.wrapping_sub(region.base));
        Some(match self {
            Self::Limit if region.is_forbidden() => Bound::NotInherited,
            Self::Limit => Bound::Limit(bytes(region.limit())),
            Self::Budget => Bound::Budget(bytes(region.budget as usize)),
            Self::TemplateUnreadable | Self::Unresolvable(_) if is_cut_short() => {
                Bound::MemoryCutShort
            }
            Self::Poisoned => {
                let page = address.wrapping_sub(region.base) >> region.page_shift;
                let pages = region.poisoned_around(page);
                Bound::Poisoned { start: bytes(pages.start), end: bytes(pages.end) }
            }
            Self::TemplateUnreadable => Bound::TemplateUnreadable,
            Self::OutOfMemory if region.backing.is_huge() => Bound::NoHugePages,
            Self::OutOfMemory | Self::Protected => Bound::OutOfMemory,
            Self::ForkedWithoutHooks => Bound::ForkedWithoutHooks,
            Self::Unresolvable(errno) => Bound::Unresolvable(errno),
            Self::Foreign => return None,
        })
    }
}

/// A touch that must not be resolved, as a hook sees it.
#[derive(Clone, Copy)]
pub struct Violation {
    pub(crate) name: Name,
    pub(crate) access: Access,
    pub(crate) offset: usize,
    pub(crate) bound: Bound,
}

impl Violation {
    pub(crate) fn new(region: &Region, address: usize, access: Access, bound: Bound) -> Self {
        let offset = address.wrapping_sub(region.base);
        Self { name: region.name, access, offset, bound }
    }

    /// A touch of a block that was freed.
    pub(crate) fn of_freed(freed: &Freed, address: usize, access: Access) -> Self {
        let into = address.wrapping_sub(freed.start);
        let bound = Bound::Freed { size: freed.size, into };
        Self { name: freed.name, access, offset: address.wrapping_sub(freed.base), bound }
    }

    /// The arena's name, or the heap's.
    #[must_use]
    pub fn arena(&self) -> &str {
        self.name.as_str()
    }

    /// Whether the touch was a read or a write.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// The byte that was touched, counted from the start of the arena, or of the heap.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Why it was not resolved.
    #[must_use]
    pub fn bound(&self) -> Bound {
        self.bound
    }
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Violation")
            .field("arena", &self.arena())
            .field("access", &self.access)
            .field("offset", &self.offset)
            .field("bound", &self.bound)
            .finish()
    }
}

/// A function that observes violations; see [`set_violation_hook`].
pub type ViolationHook = fn(&Violation);

static HOOK: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Has `hook` observe each violation, after its line was printed and before the process dies;
/// `None` removes it.
///
/// The hook cannot prevent the death: when it returns, the signal gets its default disposition and
/// the instruction runs again.
///
/// # Safety
/// The hook runs in a signal handler, possibly on an 8 KiB alternate stack and with any lock held
/// by the interrupted code: it must be async-signal-safe (signal-safety(7)). It must not unwind.
///
/// ```
/// fn note(violation: &lacuna::Violation) {
///     let message = match violation.bound() {
///         lacuna::Bound::Budget(_) => "over budget\n",
///         _ => "out of bounds\n",
///     };
///     // SAFETY: the message is valid; write(2) is async-signal-safe.
///     unsafe { libc::write(2, message.as_ptr().cast(), message.len()) };
/// }
/// // SAFETY: `note` only calls write(2).
/// unsafe { lacuna::set_violation_hook(Some(note)) };
/// # unsafe { lacuna::set_violation_hook(None) };
/// ```
pub unsafe fn set_violation_hook(hook: Option<ViolationHook>) {
    let hook = hook.map_or(ptr::null_mut(), |hook| hook as *mut ());
    // Release pairs with the Acquire in `observe`: what the caller prepared is visible.
    HOOK.store(hook, Ordering::Release);
}

/// Prints the line, calls the hook, and gives the signal its default disposition, so that the
/// instruction, which runs again, takes the process down with its own registers in the core.
pub(crate) fn die(signal: Signal, violation: &Violation) {
    report(violation);
    let hook = HOOK.load(Ordering::Acquire);
    if !hook.is_null() {
        // SAFETY: only `set_violation_hook` stores here, and it stores a `ViolationHook`.
        let hook = unsafe { mem::transmute::<*mut (), ViolationHook>(hook) };
        hook(violation);
    }
    super::chain::set_default(signal);
}

/// Whether the process is about to die of a violation.
pub(crate) fn is_dying() -> bool {
    // Relaxed: nothing is published, and never taken back.
    LINE.claimed.load(Ordering::Relaxed) != 0
}

/// The line, in memory of its own: the handler's stack may be small. Whoever claims it first
/// prints; a second violation at the same time adds nothing, the process is dying.
struct Line {
    claimed: AtomicU32,
    text: UnsafeCell<Text>,
}

struct Text {
    bytes: [u8; LINE_MAX],
    len: usize,
}

const LINE_MAX: usize = NAME_MAX + 225;

// SAFETY: the text is touched only by the one thread that claimed the line.
unsafe impl Sync for Line {}

static LINE: Line = Line {
    claimed: AtomicU32::new(0),
    text: UnsafeCell::new(Text { bytes: [0; LINE_MAX], len: 0 }),
};

fn report(violation: &Violation) {
    // Relaxed: nothing is published; the claim is never given back.
    if LINE.claimed.swap(1, Ordering::Relaxed) != 0 {
        return;
    }
    LINE.text.with_mut(|text| {
        // SAFETY: the claim above succeeds once in the life of the process.
        let text = unsafe { &mut *text };
        text.describe(violation);
        // SAFETY: the bytes are initialised up to `len`, which is at most their number.
        unsafe { libc::write(libc::STDERR_FILENO, text.bytes.as_ptr().cast(), text.len) };
    });
}

impl Text {
    fn describe(&mut self, violation: &Violation) {
        let (of, freed) = match violation.bound {
            Bound::Freed { size, .. } => ("heap", Some(size)),
            _ => ("arena", None),
        };
        self.str("lacuna: ").str(of).str(" \"").str(violation.arena()).str("\": ");
        self.str(match violation.access {
            Access::Read => "read",
            Access::Write => "write",
        });
        if let Some(size) = freed {
            self.str(" of freed block of ").number(size).str(" bytes");
        }
        self.str(" at offset ").number(violation.offset);
        match violation.bound {
            Bound::Limit(bytes) => self.str(" is past its limit of ").number(bytes).str(" bytes"),
            Bound::Budget(bytes) => {
                self.str(" exceeds its budget of ").number(bytes).str(" resident bytes")
            }
            Bound::Poisoned { start, end } => {
                self.str(" lies in the poisoned range ").number(start).str("..").number(end)
            }
            Bound::Freed { into, .. } => self.str(", ").number(into).str(" bytes into it"),
            Bound::TemplateUnreadable => self.str(": its template cannot be read"),
            Bound::OutOfMemory => {
                self.str(": the kernel has no memory, or no mapping, for the page")
            }
            Bound::NoHugePages => self.str(
                ": no huge page is left in the system's pool (vm.nr_hugepages, \
                 vm.nr_overcommit_hugepages)",
            ),
            Bound::MemoryCutShort => {
                self.str(": the file that it shares with other processes was cut short")
            }
            Bound::NotInherited => self.str(": a forked child must not touch this arena"),
            Bound::ForkedWithoutHooks => self.str(
                ": this process was forked without the C library's fork hooks (raw clone), \
                 so arenas do not work in it",
            ),
            Bound::Unresolvable(errno) => {
                self.str(": the page cannot be made accessible, error ").number(errno as usize)
            }
        };
        self.str("\n");
    }

    fn str(&mut self, text: &str) -> &mut Self {
        self.push(text.as_bytes())
    }

    fn number(&mut self, mut number: usize) -> &mut Self {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        for (index, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0'.wrapping_add((number % 10) as u8);
            first = index;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        self.push(digits.get(first..).unwrap_or_default())
    }

    /// Appends as much as there is room for.
    fn push(&mut self, bytes: &[u8]) -> &mut Self {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(bytes) {
            *to = *from;
            self.len = self.len.wrapping_add(1);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_happened() {
        let mut violation = Violation {
            name: Name::new("index").unwrap(),
            access: Access::Write,
            offset: 1 << 40,
            bound: Bound::Limit(0),
        };
        let mut check = |bound, want: &str| {
            violation.bound = bound;
            let mut text = Text { bytes: [0; LINE_MAX], len: 0 };
            text.describe(&violation);
            assert_eq!(std::str::from_utf8(&text.bytes[..text.len]).unwrap(), want);
        };
        let head = "lacuna: arena \"index\": write at offset 1099511627776";
        check(Bound::Limit(0), &format!("{head} is past its limit of 0 bytes\n"));
        check(Bound::Budget(4096), &format!("{head} exceeds its budget of 4096 resident bytes\n"));
        let most = usize::MAX;
        check(Bound::Limit(most), &format!("{head} is past its limit of {most} bytes\n"));
        check(
            Bound::Poisoned { start: 4096, end: most },
            &format!("{head} lies in the poisoned range 4096..{most}\n"),
        );
        check(
            Bound::Freed { size: 9, into: 2 },
            "lacuna: heap \"index\": write of freed block of 9 bytes at offset 1099511627776, 2 bytes \
             into it\n",
        );
        check(Bound::NotInherited, &format!("{head}: a forked child must not touch this arena\n"));
        check(
            Bound::ForkedWithoutHooks,
            &format!(
                "{head}: this process was forked without the C library's fork hooks (raw clone), \
                 so arenas do not work in it\n"
            ),
        );
    }
}
