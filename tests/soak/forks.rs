//! Children: they check what they inherit, go on, and exit.

use crate::plot::{Plot, Sharing, template};
use crate::support::{Rng, page};
use crate::tally::{TALLY, count};
use crate::words::{Page, Untouched};
use lacuna::{Arena, Window};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Seconds that a child may take.
const CHILD_SECONDS: u32 = 100;

/// Forks, runs `child` there, and asserts that it succeeds.
pub(crate) fn fork(child: impl FnOnce()) {
    // SAFETY: the child runs the closure and exits, without unwinding into the test harness.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "{}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: a child that hangs is killed; it gets no timer of its parent's.
        unsafe {
            libc::signal(libc::SIGALRM, libc::SIG_DFL);
            libc::alarm(CHILD_SECONDS);
        }
        let result = catch_unwind(AssertUnwindSafe(child));
        // SAFETY: ends the child without running anything of its parent's.
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    let mut status = 0;
    // SAFETY: the child is ours, and waited for once.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(status, 0, "a child failed: {}", std::process::ExitStatus::from_raw(status));
    count(&TALLY.forks);
}

use std::os::unix::process::ExitStatusExt;

/// Forks while others work.
pub(crate) fn fork_until(plots: &[Plot], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        fork(|| {
            plots.iter().for_each(check_sample);
            go_on(plots);
        });
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Checks every page that is present in a plot where all write.
pub(crate) fn check_plausible(plot: &Plot) {
    for run in plot.arena.populated() {
        (run.start / page()..run.end / page()).for_each(|index| plot.check_plausible(index));
    }
}

/// Checks one in a few of the present pages: their owners were in the midst of writing.
fn check_sample(plot: &Plot) {
    for run in plot.arena.populated() {
        let pages = run.start / page()..run.end / page();
        pages.step_by(5).for_each(|index| plot.check_plausible(index));
    }
}

/// Goes on in a child: faults, discards, an arena of its own, and exact counters.
pub(crate) fn go_on(plots: &[Plot]) {
    let mut rng = Rng(u64::from(std::process::id()));
    for plot in plots.iter().filter(|plot| plot.share.is_none()) {
        for _ in 0..20 {
            let index = rng.below(plot.pages);
            plot.check_plausible(index);
            plot.write(index, Page::Full(3));
            plot.check(index, Page::Full(3));
        }
        let first = rng.below(plot.pages);
        plot.discard(first..plot.pages);
        plot.check(first, Page::Absent);
    }
    let untouched = Untouched::Repeat;
    let builder = Arena::builder(900 * page()).template(template(untouched));
    let own = Plot::of(builder, untouched, Sharing::All, Window::Adaptive, 900);
    (0..900).step_by(7).for_each(|index| own.check(index, Page::Absent));
    let memory = |plot: &Plot| crate::support::arena_rss(&plot.arena);
    let plot = &plots[rng.below(plots.len())];
    assert_eq!(plot.arena.measure().unwrap().resident_bytes, memory(plot), "in a child: {plot:?}");
}
