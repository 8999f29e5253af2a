//! Pools: instances of one image.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Backend, ErrorKind, Instance, OnFork, Pool, PoolBuilder, Template, page_size};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use support::fork::fork;
use support::{Rng, assert_success, in_child, noise, stderr, text};

const MIB: usize = 1 << 20;

fn shared(bytes: &[u8]) -> Template {
    Template::bytes(bytes).unwrap().shared().unwrap()
}

fn small(image: &[u8]) -> PoolBuilder<'static> {
    Pool::builder(shared(image), 4 * MIB).instances(3)
}

fn load(instance: &Instance, offset: usize) -> u8 {
    support::load(instance.arena(), offset)
}

fn store(instance: &Instance, offset: usize, value: u8) {
    support::store(instance.arena(), offset, value);
}

#[test]
fn instances_start_as_the_image() {
    let image = noise(MIB + 77, 1);
    let pool = small(&image).name("some").limit(2 * MIB).build().unwrap();
    let mut one = pool.acquire().unwrap();
    assert_eq!((one.len(), one.limit(), one.arena().name()), (4 * MIB, 2 * MIB, "some"));
    assert!(support::bytes(one.arena(), 0..image.len()) == image);
    assert_eq!(load(&one, image.len()), 0);
    one.set_limit(4 * MIB).unwrap();
    one.populate(3 * MIB..4 * MIB).unwrap();
    store(&one, 3 * MIB, 1);
    store(&one, 5, !image[5]);
    assert!(one.stats().resident_bytes >= MIB);
    one.release().unwrap();

    let again = pool.acquire().unwrap();
    assert_eq!(again.limit(), 2 * MIB, "the initial limit");
    assert!(support::bytes(again.arena(), 0..image.len()) == image);
    assert_eq!(again.populate(2 * MIB..3 * MIB).unwrap_err().kind(), ErrorKind::LimitExceeded);
    let other = pool.acquire().unwrap();
    store(&other, 5, 9);
    assert_eq!(load(&again, 5), image[5]);
    // The pool may go before its instances.
    drop(pool);
    assert_eq!(load(&other, 5), 9);
}

#[test]
fn there_are_so_many() {
    let pool = small(b"abc").build().unwrap();
    let mut held: Vec<_> = (0..3).map(|_| pool.acquire().unwrap()).collect();
    let error = pool.acquire().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PoolExhausted);
    assert_eq!(
        error.to_string(),
        "acquire an instance (3): all instances of the pool are in use; \
         release an instance, or let the pool have more of them"
    );
    let last = held.pop().unwrap();
    let address = last.as_ptr();
    drop(last);
    assert_eq!(pool.acquire().unwrap().as_ptr(), address, "last in, first out");
    held.clear();
    let stats = pool.stats();
    assert_eq!((stats.instances, stats.made, stats.in_use, stats.idle), (3, 3, 0, 3));
    assert_eq!((stats.spoilt, stats.acquired), (0, 4));
}

#[test]
fn bad_values_are_told_when_it_is_built() {
    let kind = |builder: PoolBuilder<'_>| builder.build().unwrap_err().kind();
    assert_eq!(kind(small(b"x").instances(0)), ErrorKind::ZeroLength);
    assert_eq!(kind(small(b"x").instances(usize::MAX)), ErrorKind::TooLong);
    assert_eq!(kind(small(b"x").limit(5 * MIB)), ErrorKind::LimitPastLength);
    assert_eq!(kind(small(b"x").budget_per_instance(1)), ErrorKind::BudgetTooSmall);
    assert_eq!(kind(Pool::builder(shared(&[1; 5000]), 4096)), ErrorKind::TemplateTooLong);
    assert_eq!(kind(Pool::builder(Template::zero(), 0)), ErrorKind::ZeroLength);
}

#[test]
fn statistics_and_trimming() {
    let image = noise(MIB, 4);
    let pool = small(&image).build().unwrap();
    let instances: Vec<_> = (0..2).map(|_| pool.acquire().unwrap()).collect();
    for instance in &instances {
        (0..10).for_each(|page| store(instance, page * 5 * page_size(), 1));
    }
    let stats = pool.stats();
    assert_eq!((stats.made, stats.in_use, stats.idle), (2, 2, 0));
    assert_eq!(stats.resident_bytes, 20 * page_size());
    assert_eq!(
        stats.to_string(),
        "2 in use, 0 idle of 3 instances, 80.0 KiB resident, acquired 2 times"
    );
    let mut instances = instances.into_iter();
    instances.next().unwrap().release().unwrap();
    assert_eq!(pool.stats().resident_bytes, 20 * page_size(), "kept, to be written again");
    assert_eq!(pool.trim().unwrap(), 10 * page_size());
    assert_eq!(pool.trim().unwrap(), 0);
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.idle, stats.resident_bytes), (1, 1, 10 * page_size()));
    let held = instances.next().unwrap();
    assert_eq!(load(&held, 0), 1, "what is in use is left alone");
    assert_eq!(load(&pool.acquire().unwrap(), 0), image[0]);
    assert!(format!("{pool:?} {held:?}").contains("PoolStats"));
}

/// What is written again and again is there already: nobody faults.
#[test]
fn warm_instances_do_not_fault() {
    let image = noise(MIB, 5);
    let pool = small(&image).build().unwrap();
    let mut faults = None;
    for round in 0..100 {
        let instance = pool.acquire().unwrap();
        for page in 0..32 {
            let at = page * 8 * page_size() + round;
            assert_eq!(load(&instance, at), image[at]);
            store(&instance, at, !image[at]);
        }
        // The first round reads, and writes to what it has read.
        let now = instance.stats().faults;
        assert_eq!(*faults.get_or_insert(now), now, "round {round}");
    }
}

/// An instance that cannot be reset is not used before it can be.
#[test]
fn what_cannot_be_reset_is_spoilt() {
    let pool = small(b"abc").instances(1).keep_resident(0).build().unwrap();
    let instance = pool.acquire().unwrap();
    store(&instance, 0, b'x');
    let start = instance.as_ptr();
    // SAFETY: it changes no content.
    if unsafe { libc::mlock(start.cast(), page_size()) } != 0 {
        eprintln!("NOT RUN: this process may not lock a page");
        return;
    }
    let error = instance.release().unwrap_err();
    assert_eq!(error.errno(), Some(lacuna::Errno::EINVAL), "{error}");
    let stats = pool.stats();
    assert_eq!((stats.spoilt, stats.idle, stats.in_use), (1, 0, 0));
    assert_eq!(pool.acquire().unwrap_err().kind(), ErrorKind::PoolExhausted);
    // SAFETY: as above.
    assert_eq!(unsafe { libc::munlock(start.cast(), page_size()) }, 0);
    let instance = pool.acquire().unwrap();
    assert_eq!((load(&instance, 0), pool.stats().spoilt), (b'a', 0));
}

/// Threads never see what another has written, nor are refused while there is one for each.
#[test]
fn threads_acquire_and_release() {
    const THREADS: usize = 4;
    let image = noise(MIB, 6);
    let pool = small(&image).instances(THREADS).limit(2 * MIB).build().unwrap();
    let in_use = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (pool, image, in_use) = (pool.clone(), &image, &in_use);
            scope.spawn(move || {
                let mut rng = Rng(thread as u64);
                for round in 0..400 {
                    let mut instance = pool.acquire().unwrap();
                    assert!(in_use.fetch_add(1, Ordering::Relaxed) < THREADS);
                    for _ in 0..16 {
                        let at = rng.below(image.len());
                        assert_eq!(load(&instance, at), image[at]);
                        store(&instance, at, !image[at]);
                        // So that it reads as the image's to this thread, too.
                        store(&instance, at, image[at]);
                        store(&instance, at / page_size() * page_size(), thread as u8);
                        store(&instance, at / page_size() * page_size(), image[at & !4095]);
                        store(&instance, MIB + at, 1 + thread as u8);
                    }
                    if round % 3 == 0 {
                        instance.set_limit(4 * MIB).unwrap();
                        assert_eq!(load(&instance, 3 * MIB + round), 0);
                        store(&instance, 3 * MIB + round, 1);
                    }
                    if round % 50 == 0 {
                        pool.trim().unwrap();
                    }
                    in_use.fetch_sub(1, Ordering::Relaxed);
                    instance.release().unwrap();
                    let fresh = pool.acquire().unwrap();
                    let at = rng.below(image.len());
                    assert_eq!((load(&fresh, at), load(&fresh, MIB + at)), (image[at], 0));
                    drop(fresh);
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.in_use, stats.spoilt, stats.acquired), (0, 0, 400 * 2 * THREADS as u64));
    assert!(stats.made <= THREADS && stats.idle == stats.made, "{stats}");
}

#[test]
fn children_have_pools_of_their_own() {
    assert_success(&in_child("children_have_pools_of_their_own", "fork", || {
        let image = noise(MIB, 8);
        for what in [OnFork::Inherit, OnFork::Wipe] {
            let pool = small(&image).on_fork(what).build().unwrap();
            let held = pool.acquire().unwrap();
            store(&held, 0, !image[0]);
            drop(pool.acquire().unwrap());
            fork(|| {
                let expected = if what == OnFork::Inherit { !image[0] } else { image[0] };
                assert_eq!(load(&held, 0), expected);
                let other = pool.acquire().unwrap();
                assert!(support::bytes(other.arena(), 0..image.len()) == image);
                store(&other, 1, !image[1]);
                drop(other);
                assert_eq!(pool.stats().in_use, 1);
                let rest: Vec<_> = (0..2).map(|_| pool.acquire().unwrap()).collect();
                for instance in rest {
                    assert!(support::bytes(instance.arena(), 0..image.len()) == image);
                }
                pool.trim().unwrap();
            });
            assert_eq!((load(&held, 0), pool.stats().in_use), (!image[0], 1));
        }
    }));
}

/// Forks while other threads acquire and release: the child's pool works.
#[test]
fn children_of_busy_parents() {
    let output = in_child("children_of_busy_parents", "fork", || {
        let image = noise(MIB, 8);
        let pool = small(&image).instances(8).build().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let instance = pool.acquire().unwrap();
                        store(&instance, 5 * page_size(), 1);
                    }
                });
            }
            for _ in 0..30 {
                fork(|| {
                    let some: Vec<_> = (0..6).map(|_| pool.acquire().unwrap()).collect();
                    for instance in &some {
                        assert_eq!(load(instance, 5 * page_size()), image[5 * page_size()]);
                        store(instance, 5 * page_size(), 7);
                    }
                });
            }
            done.store(true, Ordering::Relaxed);
        });
    });
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(stderr(&output), "");
}

fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// A thousand instances of 16 MiB that wrote 32 pages each take no more than the image, what they have
/// written, and a twentieth. (Without userfaultfd, each run of pages is a mapping, and the process has not
/// so many.)
#[test]
fn a_thousand_instances_cost_what_they_wrote() {
    let output = in_child("a_thousand_instances_cost_what_they_wrote", "memory", || {
        const INSTANCES: usize = 1000;
        let image = noise(16 * MIB, 3);
        let before = (status("VmRSS"), status("VmPTE"));
        let builder = Pool::builder(shared(&image), 16 * MIB).instances(INSTANCES);
        let pool = builder.backend(Backend::Userfaultfd).build().unwrap();
        let instances: Vec<_> = (0..INSTANCES).map(|_| pool.acquire().unwrap()).collect();
        let mut rng = Rng(1);
        for instance in &instances {
            for part in 0..32 {
                let at = part * MIB / 2 + rng.below(MIB / 2);
                store(instance, at, !image[at]);
            }
        }
        let grown = status("VmRSS") - before.0;
        let tables = status("VmPTE").saturating_sub(before.1);
        let written = INSTANCES * 32 * page_size();
        let all = 16 * MIB + written;
        println!(
            "\n{INSTANCES} instances: {grown} bytes more in VmRSS, image and written {all}: {:.4}; \
             page tables {tables}; {}",
            grown as f64 / all as f64,
            pool.stats()
        );
        assert!(grown <= all + all / 20);
        assert_eq!(pool.stats().in_use, INSTANCES);
        let resident: usize =
            instances.iter().map(|it| it.arena().measure().unwrap().resident_bytes).sum();
        assert_eq!(resident, written);
        assert!(grown >= written, "no more was counted than there is");
        // Released and trimmed, they cost next to nothing.
        drop(instances);
        pool.trim().unwrap();
        let left = status("VmRSS").saturating_sub(before.0);
        assert!(left <= 16 * MIB + 16 * MIB, "{left} bytes are left");
    });
    assert!(output.status.success(), "{}", text(&output));
    print!("{}", support::stdout(&output).lines().find(|it| it.contains("VmRSS")).unwrap());
}

/// What a program may do to the instances of a pool.
#[derive(Clone, Copy, Debug)]
enum Action {
    Acquire,
    Write { which: usize, at: usize, value: u8 },
    Read { which: usize, at: usize },
    Grow { which: usize },
    Populate { which: usize, page: usize },
    Measure { which: usize },
    Release { which: usize },
    Trim,
}

const LEN: usize = 3 * MIB;
const LIMIT: usize = 2 * MIB + 4096;

fn action() -> impl Strategy<Value = Action> {
    let which = || 0..3usize;
    prop_oneof![
        3 => Just(Action::Acquire),
        8 => (which(), 0..LEN, any::<u8>())
            .prop_map(|(which, at, value)| Action::Write { which, at, value }),
        6 => (which(), 0..LEN).prop_map(|(which, at)| Action::Read { which, at }),
        1 => which().prop_map(|which| Action::Grow { which }),
        1 => (which(), 0..500usize).prop_map(|(which, page)| Action::Populate { which, page }),
        1 => which().prop_map(|which| Action::Measure { which }),
        3 => which().prop_map(|which| Action::Release { which }),
        1 => Just(Action::Trim),
    ]
}

/// An instance, and what was written to it.
struct Held {
    instance: Instance,
    written: BTreeMap<usize, u8>,
}

impl Held {
    fn check(&self, image: &[u8], at: usize) {
        let image = image.get(at).copied().unwrap_or(0);
        assert_eq!(load(&self.instance, at), self.written.get(&at).copied().unwrap_or(image));
    }

    fn run(&mut self, image: &[u8], action: Action) {
        match action {
            Action::Write { at, value, .. } if at < self.instance.limit() => {
                store(&self.instance, at, value);
                self.written.insert(at, value);
            }
            Action::Read { at, .. } if at < self.instance.limit() => self.check(image, at),
            Action::Grow { .. } => self.instance.set_limit(LEN).unwrap(),
            Action::Populate { page, .. } => {
                let start = page * page_size();
                self.instance.populate(start..start + 3 * page_size()).unwrap();
            }
            Action::Measure { .. } => {
                let stats = self.instance.arena().measure().unwrap();
                assert_eq!(stats.resident_bytes, support::arena_memory(self.instance.arena()));
            }
            _ => {}
        }
    }

    fn release(self, image: &[u8]) {
        self.written.keys().for_each(|at| self.check(image, *at));
        self.instance.release().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn instances_agree_with_a_model(
        len in 0..LIMIT,
        keep in prop_oneof![Just(0), Just(20 * 4096), Just(usize::MAX)],
        is_shared: bool,
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let image = noise(len, 4);
        let template = Template::bytes(&image).unwrap();
        let template = if is_shared { template.shared().unwrap() } else { template };
        let builder = Pool::builder(template, LEN).instances(3).keep_resident(keep);
        let pool = builder.limit(LIMIT).build().unwrap();
        let mut held: Vec<Held> = Vec::new();
        for action in actions {
            match action {
                Action::Acquire => match pool.acquire() {
                    Ok(instance) => {
                        assert!(held.len() < 3);
                        held.push(Held { instance, written: BTreeMap::new() });
                    }
                    Err(error) => {
                        assert_eq!((error.kind(), held.len()), (ErrorKind::PoolExhausted, 3));
                    }
                },
                Action::Trim => _ = pool.trim().unwrap(),
                Action::Release { which } if which < held.len() => {
                    held.swap_remove(which).release(&image);
                }
                Action::Write { which, .. }
                | Action::Read { which, .. }
                | Action::Grow { which }
                | Action::Populate { which, .. }
                | Action::Measure { which } => {
                    if let Some(held) = held.get_mut(which) {
                        held.run(&image, action);
                    }
                }
                Action::Release { .. } => {}
            }
            let stats = pool.stats();
            assert_eq!(stats.in_use, held.len());
            assert_eq!(stats.idle + stats.in_use, stats.made);
        }
    }
}
