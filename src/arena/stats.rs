//! What an arena tells about itself.

use crate::atomic::Ordering;
use crate::fault::ledger::UNBOUNDED;
use crate::fault::region::Region;
use core::fmt;

/// The state of an arena in numbers, from [`Arena::stats`](crate::Arena::stats). Bytes are always
/// whole pages.
///
/// Each number is exact; taken together they show one moment only while no thread is touching,
/// populating or discarding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes of address space that may be addressed: the arena's length.
    pub reserved_bytes: usize,
    /// The prefix that may be touched.
    pub limit_bytes: usize,
    /// The most bytes that may be resident and lent together; `None` without a budget.
    pub budget_bytes: Option<usize>,
    /// Bytes of memory that lacuna installed.
    pub resident_bytes: usize,
    /// Bytes that the kernel may turn into memory by itself: pages that were only read so far and
    /// show its zero page or a [shared](crate::Template::shared) image's, and lent chunks. They are
    /// charged to the budget like resident ones. [`Arena::measure`](crate::Arena::measure) moves to
    /// `resident_bytes` what has become memory.
    pub lent_bytes: usize,
    /// Bytes that are poisoned ([`Arena::poison`](crate::Arena::poison)).
    pub poisoned_bytes: usize,
    /// The most that `resident_bytes` has been.
    pub peak_resident_bytes: usize,
    /// Bytes of memory that the [checkpoint](crate::Arena::checkpoint) keeps what was there in. They are
    /// not charged to the budget, nor part of `resident_bytes`; lacuna's bits take about 0.02 % of what
    /// is present besides.
    pub checkpoint_bytes: usize,
    /// Faults that the handler was called for.
    pub faults: u64,
    /// Faults among them whose page another thread had installed meanwhile.
    pub raced_faults: u64,
}

impl Stats {
    pub(crate) fn of(region: &Region) -> Self {
        let bytes = |pages: u64| (pages as usize) << region.page_shift;
        let balance = region.ledger.balance();
        Self {
            reserved_bytes: bytes(region.pages as u64),
            limit_bytes: bytes(region.limit() as u64),
            budget_bytes: (region.budget != UNBOUNDED).then(|| bytes(region.budget)),
            resident_bytes: bytes(balance.resident),
            lent_bytes: bytes(balance.lent),
            poisoned_bytes: bytes(region.tables.count_poisoned() as u64),
            peak_resident_bytes: bytes(balance.peak),
            checkpoint_bytes: bytes(region.track.stored_pages()),
            // Relaxed: statistics.
            faults: region.counters.faults.load(Ordering::Relaxed),
            raced_faults: region.counters.raced.load(Ordering::Relaxed),
        }
    }

    /// Bytes that may still be installed before the budget is full; `None` without a budget.
    #[must_use]
    pub fn budget_left(&self) -> Option<usize> {
        let charged = self.resident_bytes + self.lent_bytes;
        self.budget_bytes.map(|budget| budget.saturating_sub(charged))
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} resident", Bytes(self.resident_bytes))?;
        if self.lent_bytes > 0 {
            write!(f, ", {} lent", Bytes(self.lent_bytes))?;
        }
        if self.poisoned_bytes > 0 {
            write!(f, ", {} poisoned", Bytes(self.poisoned_bytes))?;
        }
        write!(f, " of {} reserved", Bytes(self.reserved_bytes))?;
        if let Some(budget) = self.budget_bytes {
            write!(f, ", budget {}", Bytes(budget))?;
        }
        if self.checkpoint_bytes > 0 {
            write!(f, ", checkpoint {}", Bytes(self.checkpoint_bytes))?;
        }
        write!(f, ", peak {}, {} faults", Bytes(self.peak_resident_bytes), self.faults)
    }
}

/// A number of bytes for people.
pub(crate) struct Bytes(pub(crate) usize);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut value = self.0 as f64;
        let mut unit = "bytes";
        for next in UNITS {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        match unit {
            "bytes" => write!(f, "{} bytes", self.0),
            _ => write!(f, "{value:.1} {unit}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_what_matters() {
        let stats = Stats {
            reserved_bytes: 4 << 40,
            resident_bytes: 3 << 19,
            peak_resident_bytes: 4096,
            faults: 7,
            ..Stats::default()
        };
        assert_eq!(
            stats.to_string(),
            "1.5 MiB resident of 4.0 TiB reserved, peak 4.0 KiB, 7 faults"
        );
        let stats = Stats { budget_bytes: Some(4096), lent_bytes: 4096, ..Stats::default() };
        assert_eq!(stats.budget_left(), Some(0));
        assert_eq!(
            stats.to_string(),
            "0 bytes resident, 4.0 KiB lent of 0 bytes reserved, budget 4.0 KiB, \
             peak 0 bytes, 0 faults"
        );
    }
}
