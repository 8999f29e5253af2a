//! The ways of getting sparse memory.

mod bare;
mod monitor;
mod ours;
mod plain;
pub(crate) mod rollback;
mod segv;

pub(crate) use ours::{lacuna, lacuna_alone, lacuna_mprotect};

use super::work::{Content, Work};

/// New memory of one of the rivals.
pub(crate) trait Memory {
    fn base(&self) -> *mut u8;

    /// What belongs to the timed work before the first touch.
    fn prepare(&mut self) {}

    /// Faults that the rival counted itself; `None`: the kernel's minor faults.
    fn faults(&self) -> Option<u64> {
        None
    }

    /// Whether untouched pages have the content that was asked for, rather than zeroes.
    fn has_template(&self) -> bool {
        true
    }

    /// Checks the rival's own books against the kernel's number of resident bytes.
    fn check(&self, _resident: usize) {}

    fn kind(&self) -> &'static str;
}

/// The name of plain memory in huge pages.
const HUGE: &str = "mmap, MADV_HUGEPAGE";

/// Makes memory for a workload.
type Make = Box<dyn Fn(&Work) -> Box<dyn Memory>>;

/// A way of getting sparse memory.
pub(crate) struct Rival {
    pub(crate) name: String,
    /// Makes memory for a workload.
    pub(crate) make: Make,
    /// Touches the first of so many parts of the pages only; all figures are per page.
    pub(crate) share: usize,
    /// Takes a fault for each page.
    slow: bool,
}

impl Rival {
    fn new(name: impl Into<String>, make: impl Fn(&Work) -> Box<dyn Memory> + 'static) -> Self {
        Self { name: name.into(), make: Box::new(make), share: 1, slow: false }
    }

    /// Says that it takes a fault for each page.
    fn slow(self, slow: bool) -> Self {
        Self { slow, ..self }
    }

    /// Has it touch only the first of `share` parts.
    pub(crate) fn share(self, share: usize) -> Self {
        Self { share, ..self }
    }

    /// The same if it is one of the slow: no page is different from the next, so a part will do.
    pub(crate) fn share_if_slow(self, share: usize) -> Self {
        if self.slow { self.share(share) } else { self }
    }

    /// Whether it is plain memory in huge pages.
    pub(crate) fn is_huge(&self) -> bool {
        self.name == HUGE
    }

    /// Whether each chunk with a page of its own costs it mappings, of which there are 65,530.
    pub(crate) fn needs_mappings(&self) -> bool {
        self.name.ends_with("Mprotect")
    }

    /// The name, and what part of the work it does.
    pub(crate) fn title(&self) -> String {
        match self.share {
            1 => self.name.clone(),
            share => format!("{} [1/{share} of the pages]", self.name),
        }
    }
}

/// Plain memory in base pages: what the others are compared with.
pub(crate) fn small() -> Rival {
    Rival::new("mmap, 4 KiB pages", plain::small)
}

/// Plain memory in huge pages.
pub(crate) fn huge() -> Rival {
    Rival::new(HUGE, plain::huge)
}

/// Base pages filled with the content before the first touch.
pub(crate) fn filled() -> Rival {
    Rival::new("mmap, 4 KiB pages, filled first", plain::filled)
}

/// Huge pages filled with the content before the first touch.
pub(crate) fn filled_huge() -> Rival {
    Rival::new("mmap, MADV_HUGEPAGE, filled first", plain::filled_huge)
}

/// Inaccessible memory that a SIGSEGV handler opens.
pub(crate) fn segv(pages: usize) -> Rival {
    let name = format!("SIGSEGV + mprotect, {} a fault", plural(pages));
    Rival::new(name, move |work| segv::memory(work, pages)).slow(pages == 1)
}

/// The least that a signal a page can cost.
fn bare() -> Rival {
    Rival::new("a bare SIGBUS handler, 1 page a fault", bare::memory)
}

/// userfaultfd with a thread that resolves.
pub(crate) fn monitor(pages: usize) -> Rival {
    let name = format!("userfaultfd thread, {} a fault", plural(pages));
    Rival::new(name, move |work| monitor::memory(work, pages)).slow(pages == 1)
}

/// Every rival for memory that starts with `content`. The first is the baseline.
pub(crate) fn all(content: Content) -> Vec<Rival> {
    let mut rivals = vec![small(), huge()];
    if content != Content::Zero {
        rivals.extend([filled(), filled_huge()]);
    }
    rivals.extend([segv(1), segv(16), monitor(1), monitor(16)]);
    rivals.extend(ours::all());
    rivals
}

/// The rivals for touches here and there. Plain SIGSEGV + mprotect is none: each touch splits a mapping,
/// and the kernel has 65,530 for a process.
pub(crate) fn scattered() -> Vec<Rival> {
    vec![small(), huge(), bare(), monitor(1).share(8), lacuna(), lacuna_alone(), lacuna_mprotect()]
}

fn plural(pages: usize) -> String {
    match pages {
        1 => "1 page".to_owned(),
        more => format!("{more} pages"),
    }
}
