//! Rivals measured in turns: A B C, B C A, C A B ..., each sample on memory that is new.
//!
//! A machine's speed drifts: by its clock, its neighbours, the state of its free memory. Measuring one
//! rival to completion and then the next puts the drift into the comparison; taking turns keeps it
//! out. The order is shuffled anew in each round, so that nobody always follows the same rival.

use super::options::Mode;
use super::statistics::{Quartiles, Random};
use std::time::Duration;

/// What one run of one rival came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) time: Duration,
    /// Pages touched, or whatever the workload counts.
    pub(crate) units: usize,
    /// Faults, where the workload has any.
    pub(crate) faults: Option<u64>,
    /// Bytes of memory there are afterwards.
    pub(crate) resident: Option<usize>,
    /// Bytes of the pages that were touched.
    pub(crate) touched: usize,
}

impl Sample {
    /// One that only took time.
    pub(crate) fn timed(time: Duration, units: usize) -> Self {
        Self { time, units, ..Self::default() }
    }

    pub(crate) fn nanoseconds(&self) -> f64 {
        self.time.as_secs_f64() * 1e9 / self.units as f64
    }
}

type Run<'a> = Box<dyn FnMut() -> Sample + 'a>;

/// A rival in one workload.
pub(crate) struct Contestant<'a> {
    name: String,
    run: Run<'a>,
}

impl<'a> Contestant<'a> {
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut() -> Sample + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// The samples of one rival, one a round.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) samples: Vec<Sample>,
}

/// What came of one workload. The first row is the baseline.
pub(crate) struct Outcome {
    pub(crate) title: String,
    /// What one unit of the work is: "page".
    pub(crate) unit: &'static str,
    pub(crate) rows: Vec<Row>,
}

/// The numbers of a row that are printed.
pub(crate) struct Figures {
    /// Median of this row over median of the baseline; quartiles of the quotients round by round.
    pub(crate) ratio: Quartiles,
    pub(crate) nanoseconds: f64,
    pub(crate) faults: Option<f64>,
    pub(crate) resident: Option<f64>,
}

/// Has the contestants take turns.
pub(crate) fn race(
    title: &str,
    unit: &'static str,
    mode: Mode,
    mut contestants: Vec<Contestant<'_>>,
) -> Outcome {
    let mut samples = vec![Vec::new(); contestants.len()];
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    let mut random = Random(1);
    for round in 0..mode.warm_up_rounds() + mode.rounds() {
        random.shuffle(&mut order);
        for &index in &order {
            let sample = (contestants[index].run)();
            if round >= mode.warm_up_rounds() {
                samples[index].push(sample);
            }
        }
    }
    let row = |(contestant, samples): (Contestant<'_>, _)| Row { name: contestant.name, samples };
    let rows = contestants.into_iter().zip(samples).map(row).collect();
    Outcome { title: title.to_owned(), unit, rows }
}

impl Outcome {
    /// The numbers of a row.
    pub(crate) fn figures(&self, row: &Row) -> Figures {
        let samples = &row.samples;
        let baseline = &self.rows[0].samples;
        let median = |samples: &[Sample]| {
            Quartiles::of(samples.iter().map(Sample::nanoseconds).collect()).median
        };
        let quotients = samples.iter().zip(baseline);
        let quotients = quotients.map(|(own, base)| own.nanoseconds() / base.nanoseconds());
        let nanoseconds = median(samples);
        let ratio = Quartiles {
            median: nanoseconds / median(baseline),
            ..Quartiles::of(quotients.collect())
        };
        let middle = |number: &dyn Fn(&Sample) -> Option<f64>| {
            let numbers: Option<Vec<f64>> = samples.iter().map(number).collect();
            numbers.map(|numbers| Quartiles::of(numbers).median)
        };
        Figures {
            ratio,
            nanoseconds,
            faults: middle(&|it| Some(it.faults? as f64 / it.units as f64)),
            resident: middle(&|it| Some(it.resident? as f64 / it.touched as f64)),
        }
    }
}
