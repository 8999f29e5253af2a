//! Arenas on memory that several processes map, each of which resolves its own faults.
//!
//! Two arenas of one process on the same file are to each other as those of two processes: what can
//! be told by one thread is tested so. What cannot, in processes: this binary, run again.

#![allow(missing_docs, reason = "a test")]

#[path = "shared_memory/model.rs"]
mod model;
mod support;

use lacuna::{
    Arena, ArenaBuilder, Backend, Bound, Errno, ErrorKind, Heap, OnFork, Operation, SparseArray,
    Template, Window, page_size,
};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Output;
use std::sync::atomic::{AtomicU64, Ordering};
use support::fork::{fork, status_of_fork, status_of_raw_fork};
use support::{
    Rng, WINDOWS, arena_rss, assert_killed, assert_success, discard, file_of, in_child, load,
    numbered_pages, page, read_into, rerun, stderr, stdout, store, text,
};

const PAGES: usize = 1300;

pub(crate) fn builder(len: usize) -> ArenaBuilder<'static> {
    Arena::builder(len).name("shared").backend(Backend::Userfaultfd)
}

pub(crate) fn sevens() -> Template {
    Template::repeat(&7u8).unwrap()
}

/// A file in memory of so many bytes, with none of its pages.
pub(crate) fn empty_file(len: usize) -> File {
    let file = file_of(&[]);
    file.set_len(len as u64).unwrap();
    file
}

/// Pages that a file has.
fn pages_of(file: &File) -> usize {
    file.metadata().unwrap().blocks() as usize * 512 / page_size()
}

/// A word of an arena, which any number of processes may use.
fn word(arena: &Arena, offset: usize) -> &AtomicU64 {
    assert!(offset + 8 <= arena.len() && offset.is_multiple_of(8));
    // SAFETY: within the arena, aligned, and used as nothing else; any value is valid.
    unsafe { AtomicU64::from_ptr(arena.as_ptr().add(offset).cast()) }
}

const ROLE: &str = "LACUNA_TEST_ROLE";
const FILE: &str = "LACUNA_TEST_FILE";

/// Runs `peer` in `count` processes at the same time, each of which has inherited `file` and knows its
/// number; does `meanwhile` here.
fn in_peers(
    name: &str,
    count: usize,
    file: impl FnOnce() -> File,
    peer: impl Fn(&File, usize),
    meanwhile: impl FnOnce(&File),
) -> Vec<Output> {
    if let Some(number) = std::env::var(ROLE).ok().and_then(|role| role.parse().ok()) {
        let file: i32 = std::env::var(FILE).unwrap().parse().unwrap();
        // SAFETY: inherited for this.
        peer(&unsafe { File::from_raw_fd(file) }, number);
        std::process::exit(0);
    }
    let file = file();
    // SAFETY: it touches no memory. Children inherit the copy.
    let inherited = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_DUPFD, 3) };
    let run =
        |number: usize| rerun(name, &[(ROLE, &number.to_string()), (FILE, &inherited.to_string())]);
    std::thread::scope(|scope| {
        let peers: Vec<_> = (0..count).map(|it| scope.spawn(move || run(it))).collect();
        meanwhile(&file);
        peers.into_iter().map(|it| it.join().unwrap()).collect()
    })
}

/// Waits until `count` processes have come here. `barrier` is a word that is not used otherwise.
fn meet(barrier: &AtomicU64, count: u64) {
    barrier.fetch_add(1, Ordering::SeqCst);
    while barrier.load(Ordering::SeqCst) < count {
        std::thread::yield_now();
    }
}

#[test]
fn what_one_arena_writes_the_other_reads() {
    for window in WINDOWS {
        let one = builder(PAGES * page()).template(sevens()).window(window).share();
        let one = one.reserve().unwrap();
        let memory = one.memfd().unwrap();
        let other = builder(PAGES * page()).template(sevens()).window(window).memfd(&memory);
        let other = other.reserve().unwrap();
        for at in [0, 5 * page() + 9, 600 * page(), PAGES * page() - 1] {
            store(&one, at, 1);
            assert_eq!((load(&other, at), load(&other, at ^ 1)), (1, 7));
            store(&other, at, 2);
            assert_eq!(load(&one, at), 2);
        }
        // The kernel mapped what the first had installed.
        assert_eq!(other.stats().faults, 0, "{window:?}");
        assert_eq!(other.stats().resident_bytes, 0);
        let file = File::from(memory.try_clone_to_owned().unwrap());
        assert_eq!(pages_of(&file) * page(), one.stats().resident_bytes);

        // Which may be written to and read by other means too, where it has pages.
        file.write_all_at(&[9, 9], 3).unwrap();
        assert_eq!((load(&one, 3), load(&other, 4)), (9, 9));
        assert!(read_into(&other, 0, b"abc").is_ok());
        assert_eq!(load(&one, 1), b'b');
    }
}

/// Each page that is not there yet is installed by one of the processes, whole, and counted by it.
#[test]
fn each_page_is_installed_once() {
    let len = PAGES * page();
    let peer = |file: &File, number: usize| {
        let arena = builder(len).template(numbered_pages()).memfd(file).reserve().unwrap();
        // The file goes on, for the processes to meet.
        let both = builder(len + page()).memfd(file).reserve().unwrap();
        let mut order: Vec<_> = (0..PAGES).collect();
        Rng(number as u64 / 2).shuffle(&mut order);
        meet(word(&both, len), 4);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (arena, order) = (&arena, &order);
                scope.spawn(move || {
                    for &index in order.iter().skip(100 * thread) {
                        let at = index * page() + (index * 8) % page();
                        let want = ((index << 16) | ((at % page()) / 8)) as u64;
                        assert_eq!(word(arena, at).load(Ordering::Relaxed), want);
                    }
                });
            }
        });
        println!("installed {}", arena.stats().resident_bytes / page());
        meet(word(&both, len), 8);
        order.iter().for_each(|index| _ = load(&arena, index * page()));
        let mapped = arena.measure().unwrap().resident_bytes;
        assert_eq!((mapped, arena.stats().lent_bytes), (len, 0));
        assert_eq!(arena_rss(&arena), len);
    };
    let outputs =
        in_peers("each_page_is_installed_once", 4, || empty_file(len + page()), peer, |_| {});
    let mut sum = 0;
    for output in &outputs {
        assert_success(output);
        let said = stdout(output);
        let installed = said.split("installed ").nth(1).unwrap();
        sum += installed.split_whitespace().next().unwrap().parse::<usize>().unwrap();
    }
    assert_eq!(sum, PAGES);
}

#[test]
fn counters_of_several_processes_are_exact() {
    const ROUNDS: usize = 20_000;
    let len = 4096 * page();
    let peer = |file: &File, number: usize| {
        let arena = builder(len).memfd(file).reserve().unwrap();
        meet(word(&arena, len - page()), 3);
        let mut rng = Rng(7 + number as u64);
        for _ in 0..ROUNDS {
            word(&arena, rng.below(4095) * page() + rng.below(3) * 8)
                .fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut sum = 0;
    let name = "counters_of_several_processes_are_exact";
    let mut file = None;
    let keep = |it: &File| file = Some(it.try_clone().unwrap());
    in_peers(name, 3, || empty_file(len), peer, keep).iter().for_each(assert_success);
    let arena = builder(len).memfd(file.as_ref().unwrap()).reserve().unwrap();
    for index in 0..4095 {
        (0..3).for_each(|it| sum += word(&arena, index * page() + it * 8).load(Ordering::Relaxed));
    }
    assert_eq!(sum as usize, 3 * ROUNDS);
}

/// One process discards all the time what others touch: they see the template or what they wrote.
#[test]
fn discarding_while_others_touch() {
    const TEMPLATE: u64 = 0x0707_0707_0707_0707;
    const ROUNDS: u64 = 30_000;
    let len = 64 * page();
    let peer = |file: &File, number: usize| {
        let window = if number == 2 { Window::Pages(16) } else { Window::Adaptive };
        let arena = builder(len).template(sevens()).window(window).memfd(file).reserve().unwrap();
        // Of an arena that is not discarded: the file goes on.
        let both = builder(len + page()).memfd(file).reserve().unwrap();
        let barrier = word(&both, len);
        meet(barrier, 3);
        let mut rng = Rng(number as u64);
        if number == 0 {
            while barrier.load(Ordering::SeqCst) < 5 {
                let first = rng.below(64);
                let pages = 1 + rng.below(64 - first);
                discard(&arena, first * page()..(first + pages) * page());
            }
            return;
        }
        for round in 1..=ROUNDS {
            let at = rng.below(64) * page() + number * 8;
            let word = word(&arena, at);
            let seen = word.load(Ordering::Relaxed);
            assert!(seen == TEMPLATE || seen < round, "{seen:#x} in round {round}");
            word.store(round, Ordering::Relaxed);
            if round % 512 == 0 {
                arena.populate(0..len).unwrap();
            }
        }
        barrier.fetch_add(1, Ordering::SeqCst);
        let mapped = arena.measure().unwrap();
        assert!(mapped.resident_bytes <= len);
        println!("faults {}", mapped.faults);
    };
    let name = "discarding_while_others_touch";
    for output in in_peers(name, 3, || empty_file(len + page()), peer, |_| {}) {
        assert_success(&output);
    }
}

#[test]
fn a_process_that_is_killed_leaves_the_others_as_they_were() {
    let len = 1 << 26;
    let name = "a_process_that_is_killed_leaves_the_others_as_they_were";
    let peer = |file: &File, number: usize| {
        let arena = builder(len).template(numbered_pages()).memfd(file).reserve().unwrap();
        let both = builder(len + page()).memfd(file).reserve().unwrap();
        meet(word(&both, len), 2);
        let pages = 1..len / page();
        let touch = |index: usize| {
            let seen = word(&arena, index * page() + 16).load(Ordering::Relaxed);
            assert_eq!(seen, ((index << 16) | 2) as u64);
        };
        match number {
            // Dies in the midst of it.
            0 => pages.for_each(|index| {
                touch(index);
                if index == 3000 {
                    // SAFETY: ends this process.
                    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                }
            }),
            _ => pages.rev().for_each(touch),
        }
    };
    let outputs = in_peers(name, 2, || empty_file(len + page()), peer, |_| {});
    assert_killed(&outputs[0], libc::SIGKILL);
    assert_success(&outputs[1]);
}

#[test]
fn discarding_is_for_everybody() {
    let builder = || builder(1 << 30).template(sevens()).window(Window::Pages(1));
    let one = builder().share().reserve().unwrap();
    let memory = one.memfd().unwrap();
    let other = builder().memfd(&memory).reserve().unwrap();
    (0..40).for_each(|index| store(&one, index * page(), 1));
    (30..60).for_each(|index| store(&other, index * page(), 2));
    // Also what it has not installed itself, and in chunks of which it knows nothing.
    store(&one, 1 << 29, 1);
    discard(&other, 0..1 << 30);
    for arena in [&one, &other] {
        assert!((0..60).all(|index| load(arena, index * page()) == 7));
    }
    assert_eq!(load(&other, 1 << 29), 7);
    // What the first took for present came back without another charge; the rest it has installed now.
    assert_eq!(one.stats().resident_bytes, (41 + 20) * page());
    assert_eq!(other.stats().resident_bytes, page());

    discard(&other, 0..1 << 30);
    assert_eq!((one.measure().unwrap().resident_bytes, other.stats().resident_bytes), (0, 0));
    store(&one, 5, 3);
    // SAFETY: nobody has a reference into the arena.
    unsafe { other.reset() }.unwrap();
    assert_eq!(load(&one, 5), 7);
}

#[test]
fn budgets_are_each_process_own() {
    let name = "budgets_are_each_process_own";
    let output = in_child(name, "touch", || {
        let one = builder(1 << 30).budget(3 * page()).window(Window::Pages(1)).share();
        let one = one.reserve().unwrap();
        let memory = one.memfd().unwrap();
        let other = builder(1 << 30).window(Window::Pages(1)).memfd(&memory).reserve().unwrap();
        (0..10).for_each(|index| store(&other, index * page(), 1));
        // What others have installed takes nothing of it; reading is memory here.
        assert_eq!((0..10).map(|index| usize::from(load(&one, index * page()))).sum::<usize>(), 10);
        (10..13).for_each(|index| assert_eq!(load(&one, index * page()), 0));
        assert_eq!((one.stats().resident_bytes, one.stats().budget_left()), (3 * page(), Some(0)));
        let full = one.populate(0..page()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::BudgetExhausted);
        discard(&one, 11 * page()..12 * page());
        one.populate(0..page()).unwrap();
        assert_eq!(one.populated().collect::<Vec<_>>()[0], 0..page());
        store(&one, 20 * page(), 1);
    });
    assert_killed(&output, libc::SIGBUS);
    assert!(
        stderr(&output).contains("exceeds its budget of 12288 resident bytes"),
        "{}",
        text(&output)
    );
}

#[test]
fn populating_takes_on_what_others_have_installed() {
    let one = builder(PAGES * page()).template(numbered_pages()).share().reserve().unwrap();
    let memory = one.memfd().unwrap();
    let other = builder(PAGES * page()).template(numbered_pages()).memfd(&memory);
    let other = other.budget(PAGES * page()).reserve().unwrap();
    (0..PAGES).step_by(3).for_each(|index| store(&one, index * page(), 1));
    let whole = 0..PAGES * page();
    other.populate(whole.clone()).unwrap();
    assert_eq!(other.populated().collect::<Vec<_>>(), std::slice::from_ref(&whole));
    assert_eq!(other.stats().resident_bytes, PAGES * page());
    assert_eq!(arena_rss(&other), PAGES * page());
    assert!((0..PAGES).all(|index| read_into(&other, index * page(), b"a").is_ok()));
    assert_eq!(load(&one, 4 * page()), b'a');
}

#[test]
fn measuring_takes_on_what_is_mapped() {
    let one = builder(1 << 40).template(sevens()).share().reserve().unwrap();
    let memory = one.memfd().unwrap();
    let other = builder(1 << 40).template(sevens()).memfd(&memory).reserve().unwrap();
    for at in [0, 1 << 30, 1 << 39] {
        store(&one, at, 1);
    }
    assert_eq!(other.measure().unwrap().resident_bytes, 0);
    assert_eq!((load(&other, 1 << 30), load(&other, 1 << 39)), (1, 1));
    assert_eq!(other.stats().resident_bytes, 0);
    assert_eq!(other.measure().unwrap().resident_bytes, 2 * page());
    assert_eq!(other.populated().count(), 2);
    discard(&one, 1 << 30..1 << 31);
    assert_eq!(other.measure().unwrap().resident_bytes, page());
}

#[test]
fn forked_children_share_the_memory() {
    let arena = builder(1 << 30).template(sevens()).share().reserve().unwrap();
    let secret = builder(1 << 30).name("secret").on_fork(OnFork::Forbid).share().reserve().unwrap();
    store(&arena, 0, 1);
    store(&secret, 0, 3);
    fork(|| {
        assert_eq!((load(&arena, 0), load(&arena, page())), (1, 7));
        store(&arena, 0, 2);
        store(&arena, 9 * page(), 4);
        discard(&arena, 20 * page()..21 * page());
        assert_eq!(secret.populate(0..page()).unwrap_err().kind(), ErrorKind::NotInherited);
        assert!(read_into(&secret, 0, b"a").is_err());
        discard(&secret, 0..1 << 30);
    });
    assert_eq!((load(&arena, 0), load(&arena, page()), load(&arena, 9 * page())), (2, 7, 4));
    assert_eq!(load(&secret, 0), 3);
    fork(|| {
        fork(|| store(&arena, 30 * page(), 5));
        fork(|| {
            assert_eq!(secret.populate(0..page()).unwrap_err().kind(), ErrorKind::NotInherited);
        });
    });
    assert_eq!(load(&arena, 30 * page()), 5);
    // Without hooks a child has nothing of it, or it would fill pages with zeroes for its parent.
    let status = status_of_raw_fork(|| _ = load(&arena, 40 * page()));
    assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
    assert_eq!(load(&arena, 40 * page()), 7);
    // Both take faults of their own at the same time.
    let count = || {
        for index in 1000..4000 {
            word(&arena, index * page()).fetch_add(1, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(count);
        fork(count);
    });
    let counted = |index: usize| word(&arena, index * page()).load(Ordering::SeqCst);
    assert!((1000..4000).all(|index| counted(index) == 0x0707_0707_0707_0707 + 2));

    let output = in_child("forked_children_share_the_memory", "touch", || {
        let secret = builder(1 << 30).name("secret").on_fork(OnFork::Forbid).share();
        let secret = secret.reserve().unwrap();
        store(&secret, 0, 3);
        let status = status_of_fork(|| _ = load(&secret, 0));
        assert_eq!(libc::WTERMSIG(status), libc::SIGBUS);
        assert_eq!(load(&secret, 0), 3);
    });
    assert!(output.status.success(), "{}", text(&output));
    assert!(stderr(&output).contains("a forked child must not touch this arena"));
}

#[test]
fn a_file_that_is_cut_short_is_a_violation() {
    let name = "a_file_that_is_cut_short_is_a_violation";
    for role in ["missing", "present"] {
        let output = in_child(name, role, || {
            fn note(violation: &lacuna::Violation) {
                assert_eq!(violation.bound(), Bound::MemoryCutShort);
            }
            // SAFETY: it only compares.
            unsafe { lacuna::set_violation_hook(Some(note)) };
            let file = empty_file(16 * page());
            let arena = builder(16 * page()).template(sevens()).memfd(&file).reserve().unwrap();
            store(&arena, 9 * page(), 1);
            file.set_len(8 * page() as u64).unwrap();
            store(&arena, 7 * page(), 1);
            let error = arena.populate(0..16 * page()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::MemoryTooShort);
            let at = if role == "present" { 9 } else { 10 };
            store(&arena, at * page(), 1);
        });
        assert_killed(&output, libc::SIGBUS);
        let line = stderr(&output);
        let why = "the file that it shares with other processes was cut short";
        assert!(
            line.starts_with("lacuna: arena \"shared\": write") && line.contains(why),
            "{line}"
        );
    }
    // What the library makes cannot be.
    let arena = builder(16 * page()).share().reserve().unwrap();
    let file = File::from(arena.memfd().unwrap().try_clone_to_owned().unwrap());
    assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(libc::EPERM));
}

#[test]
fn what_cannot_be_had_is_refused() {
    let kind = |builder: ArenaBuilder<'_>| builder.reserve().unwrap_err().kind();
    let short = empty_file(3 * page());
    assert_eq!(kind(builder(3 * page() + 1).memfd(&short)), ErrorKind::MemoryTooShort);
    assert!(builder(3 * page()).memfd(&short).reserve().is_ok());
    let ordinary = File::open("Cargo.toml").unwrap();
    assert_eq!(kind(builder(1).memfd(&ordinary)), ErrorKind::NotMemory);
    let (pipe, _) = std::io::pipe().unwrap();
    assert_eq!(kind(builder(1).memfd(&pipe)), ErrorKind::NotMemory);
    let read_only = File::open(format!("/proc/self/fd/{}", short.as_raw_fd())).unwrap();
    let error = builder(1).memfd(&read_only).reserve().unwrap_err();
    assert_eq!((error.operation(), error.errno()), (Operation::Map, Some(Errno::EACCES)));
    // SAFETY: a number that is no descriptor, which nobody closes.
    let closed = unsafe { BorrowedFd::borrow_raw(1 << 20) };
    let error = builder(1).memfd(&closed).reserve().unwrap_err();
    assert_eq!((error.operation(), error.errno()), (Operation::ShareMemory, Some(Errno::EBADF)));

    assert_eq!(kind(builder(1).share().on_fork(OnFork::Wipe)), ErrorKind::NotPrivate);
    assert_eq!(kind(builder(1).share().backend(Backend::Mprotect)), ErrorKind::NeedsUserfaultfd);
    let heap = Heap::new(builder(1 << 30).share().reserve().unwrap()).unwrap_err();
    assert_eq!(heap.kind(), ErrorKind::NotPrivate);
    let array = SparseArray::<u64>::zeroed_in(9, |arena| arena.share()).unwrap_err();
    assert_eq!((array.operation(), array.kind()), (Operation::Array, ErrorKind::NotPrivate));
    assert!(builder(1).reserve().unwrap().memfd().is_none());
}

/// The descriptor is the arena's own, and nobody else's business.
#[test]
fn the_descriptor_is_the_arenas_own() {
    let file = empty_file(page());
    let arena = builder(page()).template(sevens()).memfd(&file).reserve().unwrap();
    drop(file);
    assert_eq!(load(&arena, 5), 7);
    let descriptor = arena.memfd().unwrap();
    // SAFETY: it touches no memory.
    let flags = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
}
