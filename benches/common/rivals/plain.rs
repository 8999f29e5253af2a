//! Plain mappings, and mappings filled ahead.

use super::Memory;
use crate::common::memory::Mapping;
use crate::common::work::{Content, Work};

/// A mapping that the kernel fills with zeroes by itself.
struct Plain(Mapping);

impl Memory for Plain {
    fn base(&self) -> *mut u8 {
        self.0.base()
    }

    fn has_template(&self) -> bool {
        false
    }

    fn kind(&self) -> &'static str {
        "plain mmap"
    }
}

pub(super) fn small(work: &Work) -> Box<dyn Memory> {
    Box::new(Plain(Mapping::small_pages(work.len)))
}

pub(super) fn huge(work: &Work) -> Box<dyn Memory> {
    Box::new(Plain(Mapping::huge_pages(work.len)))
}

/// A mapping that is filled with the content before it is touched.
struct Filled {
    mapping: Mapping,
    value: u32,
}

impl Filled {
    fn boxed(mapping: Mapping, work: &Work) -> Box<dyn Memory> {
        let value = match work.content {
            Content::Zero => 0,
            Content::Repeat(value) => value,
        };
        Box::new(Self { mapping, value })
    }
}

impl Memory for Filled {
    fn base(&self) -> *mut u8 {
        self.mapping.base()
    }

    fn prepare(&mut self) {
        self.mapping.fill(self.value);
    }

    fn kind(&self) -> &'static str {
        "mmap filled first"
    }
}

pub(super) fn filled(work: &Work) -> Box<dyn Memory> {
    Filled::boxed(Mapping::small_pages(work.len), work)
}

pub(super) fn filled_huge(work: &Work) -> Box<dyn Memory> {
    Filled::boxed(Mapping::huge_pages(work.len), work)
}
