//! What one user of a pool's instance leaves in it is not met by the next one.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Backend, ErrorKind, Instance, Pool, Template, page_size};
use support::fork::fork;

const MIB: usize = 1 << 20;

/// A pool with a single instance, of which the next user gets what the last one had.
fn pool(template: Template) -> Pool {
    Pool::builder(template, 64 * MIB).instances(1).build().unwrap()
}

fn templates() -> [Template; 3] {
    let shared = Template::bytes(vec![7; 4 * MIB]).unwrap().shared().unwrap();
    [Template::zero(), Template::repeat(&7u8).unwrap(), shared]
}

fn poison(instance: &Instance, pages: std::ops::Range<usize>) {
    let (start, end) = (pages.start * page_size(), pages.end * page_size());
    // SAFETY: nobody has a reference into the instance.
    unsafe { instance.arena().poison(start..end) }.unwrap();
}

/// The next user died at the first touch.
#[test]
fn poison_ends_with_the_instance() {
    for template in templates() {
        let pool = pool(template);
        let last = pool.acquire().unwrap();
        let first = support::load(last.arena(), 9 * page_size());
        poison(&last, 0..1);
        poison(&last, 700..9000);
        last.release().unwrap();

        let next = pool.acquire().unwrap();
        assert_eq!(next.stats().poisoned_bytes, 0);
        assert_eq!(support::load(next.arena(), 0), first);
        support::store(next.arena(), 800 * page_size(), 1);
        next.populate(0..64 * MIB).unwrap();
    }
}

/// The next user could not record.
#[test]
fn a_recording_ends_with_the_instance() {
    let pool = pool(Template::zero());
    for most in [1, 100] {
        let last = pool.acquire().unwrap();
        last.arena().start_recording(most).unwrap();
        // A full log is one that nobody has stopped.
        for page in [3, 5, 9] {
            support::store(last.arena(), page * page_size(), 1);
        }
        drop(last);
        let next = pool.acquire().unwrap();
        let stopped = next.arena().stop_recording().unwrap_err();
        assert_eq!(stopped.kind(), ErrorKind::NotRecording);
        next.arena().start_recording(100).unwrap();
        // Not one that the last round has left: the pool keeps those.
        support::store(next.arena(), (1000 + most) * page_size(), 1);
        assert_eq!(next.arena().stop_recording().unwrap().len(), 1);
    }
}

/// The next user could roll back to what the last one had written.
#[test]
fn a_checkpoint_ends_with_the_instance() {
    for keep in [0, MIB] {
        let pool =
            Pool::builder(Template::repeat(&7u8).unwrap(), 64 * MIB).backend(Backend::Userfaultfd);
        let pool = pool.keep_resident(keep).instances(1).build().unwrap();
        let last = pool.acquire().unwrap();
        support::store(last.arena(), 0, 42);
        last.arena().checkpoint().unwrap();
        support::store(last.arena(), page_size(), 43);
        last.release().unwrap();

        let next = pool.acquire().unwrap();
        // SAFETY: nobody has a reference into the instance.
        let rolled_back = unsafe { next.arena().rollback() };
        assert_eq!(rolled_back.unwrap_err().kind(), ErrorKind::NoCheckpoint);
        assert_eq!(next.arena().written().unwrap_err().kind(), ErrorKind::NoCheckpoint);
        assert_eq!(next.stats().checkpoint_bytes, 0);
        assert_eq!(support::bytes(next.arena(), 0..2 * page_size()), vec![7; 2 * page_size()]);
        // Poison is a conflict where there is a checkpoint.
        poison(&next, 5..6);
    }
}

/// A child's copy of an instance that is in use, and its parent's.
#[test]
fn a_child_releases_a_copy() {
    let pool = pool(Template::zero());
    let last = pool.acquire().unwrap();
    poison(&last, 4..5);
    last.arena().start_recording(100).unwrap();
    fork(|| {
        // SAFETY: the parent's value is not used in the child any more.
        unsafe { std::ptr::read(&raw const last) }.release().unwrap();
        let next = pool.acquire().unwrap();
        assert_eq!(next.stats().poisoned_bytes, 0);
        next.arena().start_recording(100).unwrap();
        support::store(next.arena(), 4 * page_size(), 1);
    });
    assert_eq!(last.stats().poisoned_bytes, page_size());
    support::store(last.arena(), 0, 1);
    assert_eq!(last.arena().stop_recording().unwrap().len(), 1);
}
