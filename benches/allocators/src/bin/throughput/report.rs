//! Medians and their ratios.

use crate::Outcome;

/// The outcomes of one job.
pub struct Table(Vec<Vec<Outcome>>);

impl Table {
    pub fn new(rivals: usize) -> Self {
        Self((0..rivals).map(|_| Vec::new()).collect())
    }

    pub fn add(&mut self, rival: usize, outcome: Outcome) {
        self.0[rival].push(outcome);
    }

    /// Prints each rival's medians, and those of the first over its own: above 1 the first is faster,
    /// takes more processor time, and takes more memory.
    pub fn print(&self, title: &str, names: &[&str]) {
        let speed = |rival: usize| median(self.0[rival].iter().map(|it| it.speed));
        let peak = |rival: usize| median(self.0[rival].iter().map(|it| it.peak as f64));
        println!("\n{title}");
        let processor = |rival: usize| median(self.0[rival].iter().map(|it| it.processor));
        println!(
            "{:>9} {:>9} {:>9} {:>9} {:>9} {:>9}  rival",
            "Mops/s", "speed", "CPU s", "CPU", "peak MiB", "memory"
        );
        for (rival, name) in names.iter().enumerate() {
            println!(
                "{:>9.1} {:>8.2}x {:>9.3} {:>8.2}x {:>9.1} {:>8.2}x  {name}",
                speed(rival),
                speed(0) / speed(rival),
                processor(rival),
                processor(0) / processor(rival),
                peak(rival) / 1024.0,
                peak(0) / peak(rival),
            );
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
