//! The log of first touches: whoever has closed it finds each slot written, and no fault looks at the
//! slots any more.

use super::atomic::{AtomicU64, Ordering};
use super::fault::decode::Access;
use super::fault::log::{Log, decode};
use loom::sync::Arc;
use loom::thread;

const CAPACITY: usize = 2;

/// A log and the slots for two recordings of it.
struct Recorded {
    log: Log,
    slots: [[AtomicU64; CAPACITY]; 2],
}

fn recorded() -> Arc<Recorded> {
    let slots = || [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)];
    let recorded = Recorded { log: Log::new(), slots: [slots(), slots()] };
    Arc::new(recorded)
}

fn open(recorded: &Recorded, index: usize) {
    let slots = recorded.slots[index].as_ptr().cast_mut();
    // SAFETY: the slots outlive the model, and this thread alone opens and closes the log.
    unsafe { recorded.log.open(slots, CAPACITY) };
}

/// Closes the log, and tells the pages that it has.
fn close(recorded: &Recorded, index: usize) -> (Vec<usize>, bool) {
    let closed = recorded.log.close(thread::yield_now).unwrap();
    let slots = &recorded.slots[index][..closed.written];
    let pages = slots.iter().map(|slot| {
        let entry = slot.load(Ordering::Relaxed);
        assert_ne!(entry, u64::MAX, "a slot that is not written");
        decode(entry).0
    });
    (pages.collect(), closed.complete)
}

#[test]
fn a_closed_log_is_written() {
    loom::model(|| {
        let recorded = recorded();
        open(&recorded, 0);
        let faults = {
            let recorded = Arc::clone(&recorded);
            thread::spawn(move || [1, 2].map(|page| recorded.log.record(page, Access::Write)))
        };
        let (pages, complete) = close(&recorded, 0);
        assert!(complete);
        assert!([&[][..], &[1], &[1, 2]].contains(&pages.as_slice()));
        faults.join().unwrap();
        // Nothing came after it was closed.
        let written = recorded.slots[0].iter();
        let written = written.filter(|slot| slot.load(Ordering::Relaxed) != u64::MAX).count();
        assert_eq!(written, pages.len());
    });
}

#[test]
fn a_full_log_can_be_used_again() {
    loom::model(|| {
        let recorded = recorded();
        open(&recorded, 0);
        (1..=CAPACITY).for_each(|page| recorded.log.record(page, Access::Read));
        let fault = {
            let recorded = Arc::clone(&recorded);
            thread::spawn(move || recorded.log.record(9, Access::Read))
        };
        let (pages, complete) = close(&recorded, 0);
        assert_eq!(pages, [1, 2]);
        open(&recorded, 1);
        fault.join().unwrap();
        let (again, again_complete) = close(&recorded, 1);
        // It was one too many for the first, or in neither, or in the second.
        assert!(again.is_empty() || (again == [9] && complete));
        assert!(again_complete);
    });
}
