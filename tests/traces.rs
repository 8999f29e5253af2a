//! Traces that are saved and loaded, whole and damaged.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Access, Arena, Error, ErrorKind, Operation, Trace, page_size};
use proptest::prelude::*;
use std::io::{self, Read};
use support::{load, store};

/// The trace of these touches.
fn trace(pages: usize, touches: &[(usize, bool)]) -> Trace {
    let arena = Arena::builder(pages * page_size()).reserve().unwrap();
    arena.start_recording(touches.len().max(1)).unwrap();
    for &(page, write) in touches {
        match write {
            true => store(&arena, page * page_size(), 1),
            false => drop(load(&arena, page * page_size())),
        }
    }
    arena.stop_recording().unwrap()
}

fn saved(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    trace.save(&mut bytes).unwrap();
    bytes
}

/// Why a trace was refused.
fn refusal(bytes: impl Read) -> ErrorKind {
    let error = Trace::load(bytes).unwrap_err();
    let error = error.get_ref().and_then(|it| it.downcast_ref::<Error>()).copied().unwrap();
    assert_eq!(error.operation(), Operation::LoadTrace);
    assert!(error.hint().is_some());
    error.kind()
}

fn sample() -> Trace {
    let stream = (100..140).map(|page| (page, true));
    let scattered = (0..300).map(|index| (index * 7919 % 100_003, index % 3 == 0));
    trace(100_003, &stream.chain(scattered).collect::<Vec<_>>())
}

/// The checksum of a trace that was changed on purpose.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// A trace with this body, of which the header claims `len` bytes.
fn forged(body: &[u8], len: u64) -> Vec<u8> {
    let mut bytes = b"lacuna\x1a\n".to_vec();
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(body);
    sealed(bytes)
}

#[test]
fn a_trace_is_compact() {
    let stream: Vec<_> = (0..10_000).map(|page| (page, true)).collect();
    assert!(saved(&trace(10_000, &stream)).len() < 64);
    let scattered = sample();
    assert!(saved(&scattered).len() < 64 + 6 * scattered.len());
}

#[test]
fn a_trace_ends_where_it_ends() {
    let (first, second) = (sample(), trace(9, &[(3, false)]));
    let file = [saved(&first), saved(&second), b"more".to_vec()].concat();
    let mut from = file.as_slice();
    assert_eq!(Trace::load(&mut from).unwrap(), first);
    assert_eq!(Trace::load(&mut from).unwrap(), second);
    assert_eq!(from, b"more");
}

#[test]
fn every_changed_byte_is_refused() {
    let bytes = saved(&sample());
    for at in 0..bytes.len() {
        for change in [1, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] ^= change;
            let kind = refusal(damaged.as_slice());
            let of_version = (8..12).contains(&at);
            let want = if of_version { ErrorKind::TraceVersion } else { ErrorKind::TraceDamaged };
            assert_eq!(kind, want, "byte {at}");
        }
    }
}

#[test]
fn every_shorter_trace_is_refused() {
    let bytes = saved(&sample());
    for len in 0..bytes.len() {
        assert_eq!(refusal(&bytes[..len]), ErrorKind::TraceDamaged, "{len} bytes");
    }
}

/// What a header claims is not allocated: the address space of this would not be had.
#[test]
fn lies_are_refused() {
    let number = |mut number: u64| {
        let mut bytes = Vec::new();
        while number >= 0x80 {
            bytes.push(number as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let body = |numbers: &[u64]| numbers.iter().flat_map(|it| number(*it)).collect::<Vec<_>>();
    let forge = |numbers: &[u64]| forged(&body(numbers), body(numbers).len() as u64);
    // The page size, the pages, whether it is complete, runs.
    assert_eq!(Trace::load(forge(&[12, 100, 1, 2, 3]).as_slice()).unwrap().len(), 1);
    assert_eq!(Trace::load(forge(&[12, 100, 1, 0, 200]).as_slice()).unwrap().len(), 100);
    for lie in [
        &[12, 100, 1, 0, 202][..],       // past the arena's end
        &[12, 100, 1, 1, 2],             // before its start
        &[12, 100, 1, 0, 120, 119, 120], // more pages than there are
        &[12, 100, 1, 0, 1],             // no page
        &[12, 100, 1, 0, u64::MAX],      // very many
        &[12, 100, 1, u64::MAX - 1, 2],  // very far away
        &[12, 100, 1, 0],                // half a run
        &[12, 100, 2, 0, 2],             // neither complete nor not
        &[12, 1 << 52, 1, 0, 2],         // an arena larger than the address space
        &[64, 1, 1, 0, 2],               // a page as well
        &[u64::MAX, u64::MAX, u64::MAX], // nonsense
        &[12, 100],                      // less than there must be
        &[],
    ] {
        assert_eq!(refusal(forge(lie).as_slice()), ErrorKind::TraceDamaged, "{lie:?}");
    }
    let endless = [0xff; 11];
    assert_eq!(refusal(forged(&endless, 11).as_slice()), ErrorKind::TraceDamaged);
    for len in [1 << 29, 1 << 30, 1 << 62, u64::MAX] {
        assert_eq!(refusal(forged(&[12, 100, 1], len).as_slice()), ErrorKind::TraceDamaged);
    }
    assert_eq!(refusal(io::repeat(0x55)), ErrorKind::TraceDamaged);
    assert_eq!(refusal(io::empty()), ErrorKind::TraceDamaged);
}

/// A trace made on purpose, whose runs lie on top of each other, is replayed all the same.
#[test]
fn overlapping_runs_are_harmless() {
    let shift = page_size().trailing_zeros() as u8;
    // Pages 0 to 39, then 10 to 39, then 20 to 29.
    let body = [shift, 100, 1, 0, 81, 59, 61, 39, 21];
    let trace = Trace::load(forged(&body, body.len() as u64).as_slice()).unwrap();
    let ranges: Vec<_> = trace.iter().map(|it| it.range.start / page_size()).collect();
    assert_eq!((ranges, trace.len()), (vec![0, 10, 20], 80));
    let arena = Arena::builder(100 * page_size()).reserve().unwrap();
    arena.replay(&trace).unwrap();
    assert_eq!(arena.stats().resident_bytes, 40 * page_size());
}

#[test]
fn another_page_size_is_refused() {
    let shift = page_size().trailing_zeros() as u8 + 2;
    let body = [shift, 100, 1, 0, 8];
    let trace = Trace::load(forged(&body, 5).as_slice()).unwrap();
    assert_eq!(trace.page_size(), 4 * page_size());
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    let error = arena.replay(&trace).unwrap_err();
    assert_eq!((error.operation(), error.kind()), (Operation::Replay, ErrorKind::PageSizeDiffers));
    assert_eq!(arena.stats().resident_bytes, 0);
}

#[test]
fn errors_of_reading_and_writing_are_passed_on() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(libc::EIO))
        }
    }
    let error = Trace::load(sample_start().chain(Failing)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let mut small = [0; 10];
    assert_eq!(sample().save(small.as_mut_slice()).unwrap_err().kind(), io::ErrorKind::WriteZero);
}

fn sample_start() -> impl Read {
    io::Cursor::new(saved(&sample()).into_iter().take(50).collect::<Vec<_>>())
}

proptest! {
    #[test]
    fn what_is_saved_is_loaded(
        pages in 1usize..5000,
        touches in proptest::collection::vec((0usize..5000, any::<bool>()), 0..200),
    ) {
        let touches: Vec<_> = touches.into_iter().map(|(page, write)| (page % pages, write)).collect();
        let trace = trace(pages, &touches);
        let loaded = Trace::load(saved(&trace).as_slice()).unwrap();
        prop_assert_eq!(&loaded, &trace);
        let mut seen = std::collections::HashSet::new();
        let first = touches.iter().filter(|(page, _)| seen.insert(*page));
        let want: Vec<_> = first
            .map(|&(page, write)| (page, if write { Access::Write } else { Access::Read }))
            .collect();
        let page = page_size();
        let got: Vec<_> = loaded
            .iter()
            .flat_map(|it| it.range.step_by(page).map(move |at| (at / page, it.access)))
            .collect();
        prop_assert_eq!(got, want);
        let arena = Arena::builder(pages * page_size()).reserve().unwrap();
        prop_assert_eq!(arena.replay(&loaded).unwrap().present_bytes, seen.len() * page);
    }

    /// Bytes from anywhere, behind a good header and with a good checksum.
    #[test]
    fn any_body_is_loaded_or_refused(body in proptest::collection::vec(any::<u8>(), 0..40)) {
        let bytes = forged(&body, body.len() as u64);
        if let Ok(trace) = Trace::load(bytes.as_slice()) {
            let again = saved(&trace);
            prop_assert_eq!(Trace::load(again.as_slice()).unwrap(), trace);
        }
    }

    #[test]
    fn any_bytes_are_loaded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        prop_assert!(Trace::load(bytes.as_slice()).is_err());
    }
}
