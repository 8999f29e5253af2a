//! What is printed.

use crate::rival::Rival;
use crate::sequence::Sequence;
use crate::table::Table;
use crate::{Result, Timed, options};
use indicatif::{HumanBytes, HumanCount};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

/// How many of the most frequent sequences are printed.
const TOP: usize = 20;

pub(crate) fn help() -> Result<()> {
    Ok(io::stdout().write_all(options::HELP.as_bytes())?)
}

/// The most frequent sequences, and what counting took.
pub(crate) fn print(table: &Timed<Table>) -> Result<()> {
    // The kernel's numbers before those that reading the table may change.
    let measured = table.value.measure()?;
    let start = Instant::now();
    let summary = Summary::of(&table.value)?;
    let listing = start.elapsed();

    let out = &mut io::stdout().lock();
    for (count, sequence) in summary.top {
        writeln!(out, "{:>14}  {sequence}", HumanCount(count.into()).to_string())?;
    }
    let total = HumanCount(table.value.total());
    writeln!(out, "\nsequences  {total}, {} of them distinct", HumanCount(summary.distinct))?;
    writeln!(out, "reserved   {}", HumanBytes(measured.reserved as u64))?;
    let resident = measured.resident;
    let share = resident as f64 / measured.reserved as f64 * 100.0;
    writeln!(out, "resident   {} ({share:.4} %)", HumanBytes(resident as u64))?;
    if let Some(faults) = measured.faults {
        writeln!(out, "faults     {}", HumanCount(faults))?;
    }
    writeln!(out, "time       {} to count, {} to list", seconds(table.time), seconds(listing))?;
    Ok(())
}

/// What the hash map took, and whether it has the same counts. They differ: that is an error.
pub(crate) fn print_comparison(table: &Timed<Table>, rival: Timed<Rival>) -> Result<()> {
    let (time, map) = (rival.time, rival.value);
    let (entries, bytes) = (map.len(), map.bytes());
    map.compare(&table.value)?;
    let out = &mut io::stdout().lock();
    writeln!(out, "hash map   {} to count, {}", seconds(time), HumanBytes(bytes as u64))?;
    writeln!(out, "equal      all {} counts, in both directions", HumanCount(entries as u64))?;
    Ok(())
}

/// What the counters say.
struct Summary {
    distinct: u64,
    /// The most frequent, most frequent first.
    top: Vec<(u32, Sequence)>,
}

impl Summary {
    fn of(table: &Table) -> Result<Self> {
        // The least frequent of the best so far is the first to go. Of two that are equally
        // frequent, the one that comes first in the alphabet is better.
        let mut best = BinaryHeap::with_capacity(TOP + 1);
        let mut distinct = 0;
        for (sequence, count) in table.occurring()? {
            distinct += 1;
            best.push(Reverse((count, Reverse(sequence))));
            if best.len() > TOP {
                best.pop();
            }
        }
        let best = best.into_sorted_vec();
        let top = best.into_iter().map(|Reverse((count, Reverse(sequence)))| (count, sequence));
        Ok(Self { distinct, top: top.collect() })
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
