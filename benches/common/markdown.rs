//! The table for BENCHMARKS.md.

use super::race::{Figures, Outcome};
use super::text::{optional, short};
use std::fmt::Write;

/// All workloads, a table each, and the notes.
pub(crate) fn page(outcomes: &[Outcome], notes: &[String]) -> String {
    let mut page = String::new();
    for outcome in outcomes {
        table(&mut page, outcome);
    }
    for note in notes {
        let _ = writeln!(page, "- {note}");
    }
    page
}

fn table(page: &mut String, outcome: &Outcome) {
    let unit = outcome.unit;
    let _ = writeln!(
        page,
        "### {}\n\n\
         | ratio | quartiles | rival | ns per {unit} | faults per {unit} | resident / touched |\n\
         |--:|:-:|---|--:|--:|--:|",
        capitalised(&outcome.title)
    );
    for row in &outcome.rows {
        let name = match row.name.starts_with("lacuna") {
            true => format!("**{}**", row.name),
            false => row.name.clone(),
        };
        let _ = writeln!(page, "{}", line(&name, &outcome.figures(row)));
    }
    page.push('\n');
}

fn line(name: &str, figures: &Figures) -> String {
    let Figures { ratio, nanoseconds, faults, resident } = figures;
    format!(
        "| **{}** | {} – {} | {name} | {} | {} | {} |",
        short(ratio.median),
        short(ratio.low),
        short(ratio.high),
        short(*nanoseconds),
        optional(*faults, ""),
        optional(*resident, ""),
    )
}

fn capitalised(title: &str) -> String {
    let mut letters = title.chars();
    letters.next().map_or_else(String::new, |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}
