//! The process seen from outside: what must not grow, and what the counters must agree with.

use crate::support::addresses;
use std::fs;
use std::ops::Range;

/// Mappings and their memory, from `/proc/self/smaps`.
pub(crate) struct Memory(Vec<(Range<usize>, usize)>);

impl Memory {
    pub(crate) fn look() -> Self {
        let mut mappings: Vec<(Range<usize>, usize)> = Vec::new();
        for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
            if let Some(range) = addresses(line) {
                mappings.push((range, 0));
            } else if line.starts_with("Rss:") || line.starts_with("Swap:") {
                let kibibytes = line.split_whitespace().nth(1).and_then(|it| it.parse().ok());
                let last = mappings.last_mut().unwrap();
                last.1 += kibibytes.unwrap_or(0usize) << 10;
            }
        }
        Self(mappings)
    }

    /// Bytes of memory in the whole mappings of an address range.
    pub(crate) fn within(&self, range: &Range<usize>) -> usize {
        let inside = |it: &Range<usize>| it.start >= range.start && it.end <= range.end;
        self.0.iter().filter(|(it, _)| inside(it)).map(|(_, bytes)| bytes).sum()
    }

    fn total(&self) -> usize {
        self.0.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What a process has when it has no arena.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Books {
    bytes: usize,
    mappings: usize,
    descriptors: usize,
}

/// What the test's own threads and allocations may take more one time than another: a C library's
/// arena for each thread, and what is free in them.
const SLACK_BYTES: usize = 24 << 20;
const SLACK_MAPPINGS: usize = 48;

impl Books {
    pub(crate) fn look() -> Self {
        let memory = Memory::look();
        let descriptors = fs::read_dir("/proc/self/fd").unwrap().count();
        Self { bytes: memory.total(), mappings: memory.0.len(), descriptors }
    }

    /// The larger of each.
    pub(crate) fn max(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.max(other.bytes),
            mappings: self.mappings.max(other.mappings),
            descriptors: self.descriptors.max(other.descriptors),
        }
    }

    /// Asserts that nothing has grown since `before`.
    pub(crate) fn check(&self, before: &Self) {
        let grown = self.bytes > before.bytes + SLACK_BYTES
            || self.mappings > before.mappings + SLACK_MAPPINGS
            || self.descriptors > before.descriptors;
        assert!(!grown, "without arenas there were {before:?}, and now {self:?}");
    }
}
