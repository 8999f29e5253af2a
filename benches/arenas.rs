//! Many arenas, and large ones: what a fault costs among ten thousand, what reserving and dropping
//! costs, and what an idle arena takes.

mod common;

use common::memory::{resident, status};
use common::{Contestant, Sample, Session, page};
use lacuna::{Arena, Window};
use std::time::Instant;

const TIB: usize = 1 << 40;

fn main() {
    Session::run(|session| {
        faults(session);
        reservations(session);
        idle(session);
    });
}

/// Faults on single pages of a new arena, while others exist or not.
fn faults(session: &mut Session) {
    let others = session.mode().pick(10_000, 1_000, 10);
    let touches = session.mode().pick(20_000, 5_000, 100);
    let crowd = |count: usize| {
        move || {
            let crowd: Vec<Arena> = (0..count).map(|_| reserve(64 << 10)).collect();
            let sample = touch(touches);
            drop(crowd);
            sample
        }
    };
    session.race(
        "a fault among many arenas",
        "fault",
        vec![
            Contestant::new("one arena", crowd(0)),
            Contestant::new(format!("among {others} arenas"), crowd(others)),
        ],
    );
    let sized = |len: usize| move || touch_in(len, touches);
    session.race(
        "a fault, by the size of the reservation",
        "fault",
        vec![
            Contestant::new("1 GiB", sized(1 << 30)),
            Contestant::new("1 TiB", sized(TIB)),
            Contestant::new("64 TiB", sized(64 * TIB)),
        ],
    );
}

fn reserve(len: usize) -> Arena {
    let builder = Arena::builder(len).window(Window::Pages(1));
    builder.reserve().expect("the arena can be reserved")
}

fn touch(count: usize) -> Sample {
    touch_in(1 << 30, count)
}

/// Single touches of every third page.
fn touch_in(len: usize, count: usize) -> Sample {
    let arena = reserve(len);
    let start = Instant::now();
    for index in 0..count {
        // SAFETY: the page is within the arena, which nobody else uses.
        unsafe { arena.as_ptr().add(index * 3 * page()).write_volatile(1) };
    }
    let time = start.elapsed();
    assert_eq!(arena.stats().faults, count as u64);
    assert_eq!(resident(arena.as_ptr(), len), count * page());
    Sample::timed(time, count)
}

fn reservations(session: &mut Session) {
    let rounds = session.mode().pick(1_000, 200, 2);
    let cycle = |len: usize| {
        move || {
            let start = Instant::now();
            (0..rounds).for_each(|_| drop(reserve(len)));
            Sample::timed(start.elapsed(), rounds)
        }
    };
    session.race(
        "reserve and drop",
        "arena",
        vec![
            Contestant::new("1 TiB", cycle(TIB)),
            Contestant::new("64 TiB", cycle(64 * TIB)),
            Contestant::new("64 KiB", cycle(64 << 10)),
        ],
    );
}

/// Memory that idle arenas take, by the kernel's count.
fn idle(session: &mut Session) {
    if !session.wants("an idle arena") {
        return;
    }
    for (count, len) in [(1, TIB), (session.mode().pick(10_000, 1_000, 10), 1 << 30)] {
        let mut arenas = Vec::with_capacity(count);
        let before = status("VmRSS");
        arenas.extend((0..count).map(|_| reserve(len)));
        let bytes = status("VmRSS").saturating_sub(before);
        session.note(format!(
            "an idle arena of {} GiB, of {count}: {} bytes resident",
            len >> 30,
            bytes / count
        ));
    }
}
