//! The command line and the environment.
//!
//! `cargo bench` passes `--bench`; whoever runs the file without it (`cargo test --benches`), or with
//! `--test`, wants to know that it works and nothing else. Arguments of criterion's that mean nothing
//! here are ignored.

use std::path::PathBuf;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// That everything runs: one round, tiny sizes, no statistics.
    Test,
    /// Seconds, for a first look and for CI.
    Quick,
    /// Minutes, for publication.
    Full,
}

impl Mode {
    /// The value for this mode.
    pub(crate) fn pick<T>(self, full: T, quick: T, test: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
            Self::Test => test,
        }
    }

    /// Rounds that count; criterion wants ten samples.
    pub(crate) fn rounds(self) -> usize {
        self.pick(11, 5, 1)
    }

    /// Rounds before them that do not: they make the machine's memory warm, never the process's.
    pub(crate) fn warm_up_rounds(self) -> usize {
        self.pick(1, 1, 0)
    }
}

/// What the user asked for.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    /// Only workloads whose title contains this.
    pub(crate) filter: Option<String>,
    /// `--markdown FILE` or `LACUNA_BENCH_MD`: where to write the table.
    pub(crate) markdown: Option<PathBuf>,
    /// `--svg FILE` or `LACUNA_BENCH_SVG`: where to draw it.
    pub(crate) svg: Option<PathBuf>,
    /// `--list`: a test runner wants names; there are none.
    pub(crate) list: bool,
}

/// Criterion's options that take a value.
const VALUED: [&str; 15] = [
    "--baseline",
    "--baseline-lenient",
    "--color",
    "--colour",
    "--confidence-level",
    "--format",
    "--load-baseline",
    "--measurement-time",
    "--noise-threshold",
    "--nresamples",
    "--output-format",
    "--plotting-backend",
    "--sample-size",
    "--save-baseline",
    "--warm-up-time",
];

impl Options {
    /// Those of this process.
    pub(crate) fn of_process() -> Self {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let mut options = Self {
            mode: Mode::Test,
            filter: None,
            markdown: path("LACUNA_BENCH_MD"),
            svg: path("LACUNA_BENCH_SVG"),
            list: false,
        };
        let (mut bench, mut quick, mut test) = (false, false, false);
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--bench" => bench = true,
                "--quick" => quick = true,
                "--test" => test = true,
                "--list" => options.list = true,
                "--markdown" => options.markdown = arguments.next().map(PathBuf::from),
                "--svg" => options.svg = arguments.next().map(PathBuf::from),
                valued if VALUED.contains(&valued) => drop(arguments.next()),
                other if other.starts_with('-') => {}
                filter => options.filter = Some(filter.to_owned()),
            }
        }
        options.mode = match (test, quick, bench) {
            (true, _, _) | (false, false, false) => Mode::Test,
            (false, true, _) => Mode::Quick,
            (false, false, true) => Mode::Full,
        };
        options
    }

    /// Whether to run the workload of this title.
    pub(crate) fn wants(&self, title: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| title.contains(filter.as_str()))
    }
}
