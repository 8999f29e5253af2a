//! Touches that must not be resolved: each prints its one line and ends the process by the signal of its
//! backend.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Access, Arena, Backend, Bound, Template, Violation, page_size};
use std::ptr;
use support::{
    assert_killed, assert_success, fault_signal, file_of, in_child, load, stderr, store, text,
};

/// Runs `body` in a child, which must die by the backend's signal, and say `line` and nothing else on stderr.
#[track_caller]
fn dies(name: &str, role: &str, line: &str, body: impl FnOnce()) {
    let output = in_child(name, role, body);
    assert_killed(&output, fault_signal());
    assert_eq!(stderr(&output), line, "{}", text(&output));
}

fn arena(name: &str) -> lacuna::ArenaBuilder<'_> {
    Arena::builder(1 << 30).name(name)
}

#[test]
fn past_the_limit() {
    let name = "past_the_limit";
    let line =
        "lacuna: arena \"index\": write at offset 1048577 is past its limit of 1048576 bytes\n";
    dies(name, "write", line, || {
        store(&arena("index").limit(1 << 20).reserve().unwrap(), (1 << 20) + 1, 1);
    });
    let line = "lacuna: arena \"\": read at offset 1073741823 is past its limit of 0 bytes\n";
    dies(name, "read", line, || {
        load(&arena("").limit(0).reserve().unwrap(), (1 << 30) - 1);
    });
}

#[test]
fn over_the_budget() {
    let bytes = 8 * page_size();
    let line = format!(
        "lacuna: arena \"small\": write at offset {} exceeds its budget of {bytes} resident bytes\n",
        100 * page_size()
    );
    dies("over_the_budget", "write", &line, || {
        let arena = arena("small").budget(bytes).reserve().unwrap();
        (0..8).for_each(|page| store(&arena, page * page_size(), 1));
        store(&arena, 100 * page_size(), 1);
    });
}

#[test]
fn a_template_that_was_cut_short() {
    let line = format!(
        "lacuna: arena \"image\": read at offset {}: its template cannot be read\n",
        5 * page_size()
    );
    dies("a_template_that_was_cut_short", "read", &line, || {
        let file = file_of(&vec![7; 10 * page_size()]);
        let template = Template::file(&file).unwrap();
        let arena = arena("image").template(template).reserve().unwrap();
        assert_eq!(load(&arena, page_size()), 7);
        file.set_len(3 * page_size() as u64).unwrap();
        assert_eq!(load(&arena, 2 * page_size()), 7);
        load(&arena, 5 * page_size());
    });
}

/// What the hook saw, on stderr.
fn tell(violation: &Violation) {
    let bound = match violation.bound() {
        Bound::Limit(bytes) => bytes,
        _ => 0,
    };
    let access = match violation.access() {
        Access::Read => "read",
        Access::Write => "write",
    };
    // Not what a real hook may do; here the thread holds no lock and the stack is large.
    eprintln!("hook: {} {access} {} {bound}", violation.arena(), violation.offset());
}

#[test]
fn the_hook_sees_it_before_the_process_dies() {
    let line = "lacuna: arena \"a\": read at offset 4096 is past its limit of 4096 bytes\n\
                hook: a read 4096 4096\n";
    dies("the_hook_sees_it_before_the_process_dies", "hook", line, || {
        // SAFETY: see `tell`.
        unsafe { lacuna::set_violation_hook(Some(tell)) };
        load(&arena("a").limit(4096).reserve().unwrap(), 4096);
    });
}

/// Poisons a page of the arena through a userfaultfd of its own, which needs the first backend.
#[test]
fn a_page_that_somebody_poisoned_is_a_violation_and_does_not_hang() {
    use lacuna::uffd::{Features, PoisonMode, Uffd};
    let line = "lacuna: arena \"poisoned\": read at offset 7: the page cannot be made accessible, \
                error 17\n";
    let name = "a_page_that_somebody_poisoned_is_a_violation_and_does_not_hang";
    let output = in_child(name, "read", || {
        let arena = arena("poisoned").backend(Backend::Userfaultfd).reserve().unwrap();
        let uffd = Uffd::builder().features(Features::SIGBUS).open().unwrap();
        // SAFETY: the page is the arena's, and the point of this test.
        unsafe { uffd.poison(arena.as_ptr(), page_size(), PoisonMode::empty()) }
            .into_result()
            .unwrap();
        load(&arena, 7);
    });
    assert_killed(&output, libc::SIGBUS);
    assert_eq!(stderr(&output), line, "{}", text(&output));
}

#[test]
fn a_page_that_somebody_dropped_comes_back() {
    let template = Template::repeat(&9u8).unwrap();
    let arena =
        arena("dropped").template(template).backend(Backend::Userfaultfd).reserve().unwrap();
    store(&arena, 0, 1);
    // SAFETY: the page is the arena's, and nobody has a reference to it.
    let result = unsafe { libc::madvise(arena.as_ptr().cast(), page_size(), libc::MADV_DONTNEED) };
    assert_eq!(result, 0);
    assert_eq!(load(&arena, 0), 9);
    assert_eq!(arena.stats().resident_bytes, page_size());
}

#[test]
fn a_blocked_or_ignored_signal_is_death_too() {
    let name = "a_blocked_or_ignored_signal_is_death_too";
    let output = in_child(name, "blocked", || {
        let arena = arena("a").reserve().unwrap();
        // SAFETY: the set is valid.
        unsafe {
            let mut all = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, ptr::null_mut());
        }
        store(&arena, 0, 1);
    });
    assert_killed(&output, fault_signal());
    let output = in_child(name, "ignored", || {
        let arena = arena("a").reserve().unwrap();
        // SAFETY: ignoring a signal runs no code.
        unsafe { libc::signal(fault_signal(), libc::SIG_IGN) };
        store(&arena, 0, 1);
    });
    assert_killed(&output, fault_signal());
}

#[test]
fn guards_are_not_violations() {
    let output = in_child("guards_are_not_violations", "guard", || {
        let arena = arena("a").reserve().unwrap();
        // SAFETY: it is not, and the process dies of it.
        unsafe { arena.as_ptr().sub(1).write_volatile(1) };
    });
    assert_killed(&output, libc::SIGSEGV);
    assert_success(&in_child("guards_are_not_violations", "none", || {
        store(&arena("a").reserve().unwrap(), (1 << 30) - 1, 1);
    }));
}
