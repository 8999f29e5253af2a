//! The samples for criterion.
//!
//! Criterion measures one function to completion and then the next, which is what [`super::race`] must
//! not do. So the samples are taken first, and criterion is given them through `iter_custom`: its
//! estimates, its comparison with the run before and its files in `target/criterion` are made of the
//! same samples as the tables.

use super::race::{Outcome, Sample};
use ::criterion::{Criterion, SamplingMode, Throughput};
use std::time::Duration;

/// The fewest samples that criterion accepts.
const SAMPLES: usize = 10;

/// Has criterion report on `outcomes`.
pub(crate) fn report(outcomes: &[Outcome]) {
    let mut criterion = Criterion::default()
        .without_plots()
        .nresamples(10_000)
        .warm_up_time(Duration::from_nanos(1))
        .measurement_time(Duration::from_nanos(1));
    for outcome in outcomes {
        let mut group = criterion.benchmark_group(&outcome.title);
        group.sampling_mode(SamplingMode::Flat);
        for row in &outcome.rows {
            let samples = &row.samples;
            if samples.len() < SAMPLES {
                continue;
            }
            group.sample_size(samples.len());
            group.throughput(Throughput::Elements(samples[0].units as u64));
            // Criterion asks a few times to warm up, and then as often as there are samples: each
            // of them is used once, whichever it begins with.
            let mut turns = samples.iter().cycle();
            group.bench_function(&row.name, |bencher| {
                bencher.iter_custom(|count| {
                    turns.next().map_or(Duration::ZERO, |it| scaled(it, count))
                });
            });
        }
        group.finish();
    }
    criterion.final_summary();
}

/// The time of `count` iterations as long as this sample.
fn scaled(sample: &Sample, count: u64) -> Duration {
    sample.time.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX))
}
