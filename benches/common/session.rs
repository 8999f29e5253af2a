//! One benchmark file, from its arguments to its reports.

use super::options::{Mode, Options};
use super::race::{Contestant, Outcome, race};
use super::{criterion, markdown, svg, text};
use std::path::Path;

/// The outcomes so far.
pub(crate) struct Session {
    options: Options,
    outcomes: Vec<Outcome>,
    notes: Vec<String>,
}

impl Session {
    /// Runs `benchmarks` as the command line asks, and reports.
    pub(crate) fn run(benchmarks: impl FnOnce(&mut Self)) {
        let options = Options::of_process();
        if options.list {
            return;
        }
        let mut session = Self { options, outcomes: Vec::new(), notes: Vec::new() };
        benchmarks(&mut session);
        session.finish();
    }

    pub(crate) fn mode(&self) -> Mode {
        self.options.mode
    }

    /// Whether the workload of this title is asked for.
    pub(crate) fn wants(&self, title: &str) -> bool {
        self.options.wants(title)
    }

    /// Has the contestants take turns at a workload, and prints what came of it. The first is the
    /// baseline.
    pub(crate) fn race(
        &mut self,
        title: &str,
        unit: &'static str,
        contestants: Vec<Contestant<'_>>,
    ) {
        if !self.wants(title) {
            return;
        }
        let outcome = race(title, unit, self.mode(), contestants);
        print!("{}", text::table(&outcome));
        self.outcomes.push(outcome);
    }

    /// Something to tell that is no race.
    pub(crate) fn note(&mut self, note: String) {
        println!("\n{note}");
        self.notes.push(note);
    }

    fn finish(self) {
        let Self { options, outcomes, notes } = self;
        if options.mode == Mode::Full {
            println!("\n-- the same samples as criterion sees them --");
            criterion::report(&outcomes);
            println!("\n-- all ratios again: time against the first rival of each workload --");
            outcomes.iter().for_each(|outcome| print!("{}", text::table(outcome)));
        }
        write(options.markdown.as_deref(), || markdown::page(&outcomes, &notes));
        write(options.svg.as_deref(), || svg::picture(&outcomes));
    }
}

fn write(path: Option<&Path>, content: impl FnOnce() -> String) {
    let Some(path) = path else { return };
    match std::fs::write(path, content()) {
        Ok(()) => println!("\nwrote {}", path.display()),
        Err(error) => panic!("cannot write {}: {error}", path.display()),
    }
}
