//! First touches of whole gibibytes, in order: streams.
//!
//! ```text
//! cargo bench --bench first_touch                # minutes
//! cargo bench --bench first_touch -- --quick     # seconds
//! ```
//! What is compared: plain mappings (base pages; huge pages; filled ahead, which is the only way to a
//! content other than zero without a handler), SIGSEGV + mprotect, userfaultfd with a thread, and
//! lacuna. **All rivals of a workload take turns in one process and one run**, in an order that is
//! shuffled for each round, and what is printed first are *ratios of medians*: absolute times drift
//! with the machine, ratios of interleaved samples do not. Criterion measures one function to
//! completion before the next, so it is not let loose on the rivals: the interleaved samples are
//! collected first and handed to criterion through `iter_custom` afterwards (`common/criterion.rs`).
//!
//! Each sample's memory is new: mapped before the clock starts, unmapped after it stops. That it had
//! no page before, that there were faults, that all touched pages have memory afterwards (by the
//! kernel's count, with which lacuna's must agree) and the right content is checked in every sample
//! (`common/work.rs`).

mod common;

use common::work::{Access, Content, Pattern, Work};
use common::{GIB, MIB, Session, rivals};

fn main() {
    Session::run(|session| {
        let len = session.mode().pick(GIB, 64 * MIB, 4 * MIB);
        let work = |content, access, pattern| Work { len, content, access, pattern, tight: false };
        let repeat = Content::Repeat(0xDEAD_BEEF);
        let (write, read) = (Access::Write, Access::Read);
        for (title, work) in [
            ("sequential first write, zeroes", work(Content::Zero, write, Pattern::Forward)),
            ("sequential first write, template", work(repeat, write, Pattern::Forward)),
            ("sequential first read, zeroes", work(Content::Zero, read, Pattern::Forward)),
            ("backward first write, zeroes", work(Content::Zero, write, Pattern::Backward)),
        ] {
            stream(session, title, &work);
        }
    });
}

fn stream(session: &mut Session, title: &str, work: &Work) {
    let rivals: Vec<_> =
        rivals::all(work.content).into_iter().map(|rival| rival.share_if_slow(8)).collect();
    let contestants = rivals.iter().map(|rival| work.contestant(rival)).collect();
    session.race(title, "page", contestants);
}
