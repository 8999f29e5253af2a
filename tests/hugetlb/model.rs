//! Contents and counters of an arena of huge pages, against a model.

use crate::pool::{HUGE, Pool};
use crate::support::{discard, load, read_into, store};
use crate::{assert_pages, huge};
use lacuna::{ErrorKind, Template};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Action {
    Write(usize, u8),
    Read(usize),
    Kernel(usize, u8),
    Populate(usize, usize),
    Discard(usize, usize),
    SetLimit(usize),
    Reset,
}

fn action() -> impl Strategy<Value = Action> {
    let offset = || 0..6 * HUGE;
    let page = || 0..6usize;
    prop_oneof![
        3 => (offset(), any::<u8>()).prop_map(|(at, value)| Action::Write(at, value)),
        3 => offset().prop_map(Action::Read),
        1 => (offset(), any::<u8>()).prop_map(|(at, value)| Action::Kernel(at, value)),
        1 => (page(), page()).prop_map(|(first, count)| Action::Populate(first, count)),
        2 => (page(), page()).prop_map(|(first, count)| Action::Discard(first, count)),
        1 => page().prop_map(Action::SetLimit),
        1 => Just(Action::Reset),
    ]
}

/// Does it to an arena of six pages, with a budget of four and memory for five, and checks each step
/// against what should be there.
fn follow(actions: Vec<Action>) {
    let template = Template::repeat(&[1u8, 2, 3]).unwrap();
    let arena = huge(6 * HUGE).template(template).budget(4 * HUGE).reserve().unwrap();
    let mut written = std::collections::BTreeMap::new();
    let mut present = [false; 6];
    let mut limit = 6;
    for action in actions {
        let count = present.iter().filter(|it| **it).count();
        let may = |page: usize| present[page] || (count < 4 && page < limit);
        match action {
            Action::Write(at, value) if may(at / HUGE) => {
                store(&arena, at, value);
                present[at / HUGE] = true;
                written.insert(at, value);
            }
            Action::Read(at) if may(at / HUGE) => {
                let want = written.get(&at).copied().unwrap_or((at % 3) as u8 + 1);
                assert_eq!(load(&arena, at), want);
                present[at / HUGE] = true;
            }
            Action::Write(..) | Action::Read(_) => {}
            Action::Kernel(at, value) => {
                let result = read_into(&arena, at, &[value]);
                assert_eq!(result.is_ok(), present[at / HUGE]);
                if result.is_ok() {
                    written.insert(at, value);
                }
            }
            Action::Populate(first, count) => {
                let pages = first..(first + count).min(6);
                match arena.populate(pages.start * HUGE..pages.end * HUGE) {
                    Ok(()) => present[pages].fill(true),
                    Err(error) if error.kind() == ErrorKind::LimitExceeded => {
                        assert!(pages.end > limit);
                    }
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::BudgetExhausted);
                        let of =
                            |page: usize| arena.populated().any(|it| it.contains(&(page * HUGE)));
                        (0..6).for_each(|page| present[page] = of(page));
                        assert_eq!(present.iter().filter(|it| **it).count(), 4);
                    }
                }
            }
            Action::Discard(first, count) => {
                let pages = first..(first + count).min(6);
                discard(&arena, pages.start * HUGE..pages.end * HUGE);
                written.retain(|at, _| !pages.contains(&(at / HUGE)));
                present[pages].fill(false);
            }
            Action::SetLimit(pages) => {
                arena.set_limit(pages * HUGE).unwrap();
                limit = pages;
            }
            Action::Reset => {
                // SAFETY: nobody has a reference into the arena.
                unsafe { arena.reset() }.unwrap();
                written.clear();
                present = [false; 6];
            }
        }
        let pages = present.iter().filter(|it| **it).count();
        assert_eq!(arena.stats().resident_bytes, pages * HUGE);
        assert_eq!(arena.measure().unwrap().resident_bytes, pages * HUGE);
    }
    assert_pages(&arena, present.iter().filter(|it| **it).count());
    for (at, value) in written {
        assert_eq!(load(&arena, at), value);
    }
}

#[test]
fn counters_and_contents_agree_with_a_model() {
    let Some(_pool) = Pool::with(5) else { return };
    let config =
        ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(actions in proptest::collection::vec(action(), 1..40))| follow(actions));
}
