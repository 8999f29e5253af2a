//! The table for a terminal.

use super::race::{Figures, Outcome};
use std::fmt::Write;

/// One workload: ratios first.
pub(crate) fn table(outcome: &Outcome) -> String {
    let mut text = format!("\n{}\n", outcome.title);
    let per = format!("ns/{}", outcome.unit);
    let faults = format!("faults/{}", outcome.unit);
    let _ = writeln!(
        text,
        "{:>8} {:>17} {per:>12} {faults:>12} {:>9}  rival",
        "ratio", "(quartiles)", "resident"
    );
    for row in &outcome.rows {
        let _ = writeln!(text, "{}  {}", line(&outcome.figures(row)), row.name);
    }
    text
}

fn line(figures: &Figures) -> String {
    let ratio = figures.ratio;
    let spread = format!("({} .. {})", short(ratio.low), short(ratio.high));
    format!(
        "{:>7}x {spread:>17} {:>12} {:>12} {:>9}",
        short(ratio.median),
        short(figures.nanoseconds),
        optional(figures.faults, ""),
        optional(figures.resident, "x"),
    )
}

/// A number or a dash.
pub(crate) fn optional(number: Option<f64>, unit: &str) -> String {
    number.map_or_else(|| "-".to_owned(), |number| short(number) + unit)
}

/// A number in three digits or so.
pub(crate) fn short(number: f64) -> String {
    match number.abs() {
        0.0 => "0".to_owned(),
        small if small < 0.0095 => format!("{number:.4}"),
        small if small < 9.995 => format!("{number:.2}"),
        middle if middle < 99.95 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}
