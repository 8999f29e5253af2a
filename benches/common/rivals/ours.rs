//! lacuna, as it comes and with other settings.

use super::{Memory, Rival};
use crate::common::page;
use crate::common::work::{Content, Work};
use lacuna::{Arena, ArenaBuilder, Backend, Template, Window};

type Configure = fn(ArenaBuilder<'static>) -> ArenaBuilder<'static>;

/// lacuna as it comes.
pub(crate) fn lacuna() -> Rival {
    rival("lacuna", |builder| builder)
}

/// lacuna where userfaultfd is denied.
pub(crate) fn lacuna_mprotect() -> Rival {
    rival("lacuna, Backend::Mprotect", |builder| builder.backend(Backend::Mprotect))
}

/// lacuna in all settings that are compared.
pub(super) fn all() -> Vec<Rival> {
    vec![
        lacuna(),
        rival("lacuna, huge_pages(false)", |builder| builder.huge_pages(false)),
        rival("lacuna, Window::Pages(16)", |builder| builder.window(Window::Pages(16))),
        rival("lacuna, Window::Pages(1)", |builder| builder.window(Window::Pages(1))).slow(true),
        lacuna_mprotect(),
    ]
}

/// lacuna without handing chunks to the kernel.
pub(crate) fn lacuna_alone() -> Rival {
    rival("lacuna, lending(false)", |builder| builder.lending(false))
}

fn rival(name: &str, configure: Configure) -> Rival {
    Rival::new(name, move |work| {
        let arena = reserve(work, configure);
        lacuna::take_front().expect("there are few handlers");
        Box::new(Ours(arena))
    })
}

/// The template for a content.
pub(crate) fn template(content: Content) -> Template {
    match content {
        Content::Zero => Template::zero(),
        Content::Repeat(value) => Template::repeat(&value).expect("there is memory"),
    }
}

fn reserve(work: &Work, configure: Configure) -> Arena {
    let mut builder = Arena::builder(work.len).template(template(work.content));
    if work.tight {
        builder = builder.budget(work.touches() * page());
    }
    configure(builder).reserve().expect("the arena can be reserved")
}

struct Ours(Arena);

impl Memory for Ours {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn faults(&self) -> Option<u64> {
        Some(self.0.stats().faults)
    }

    fn check(&self, resident: usize) {
        let stats = self.0.stats();
        let books = stats.resident_bytes..=stats.resident_bytes + stats.lent_bytes;
        assert!(books.contains(&resident), "{resident} bytes resident, the books say {books:?}");
        if let Some(budget) = stats.budget_bytes {
            assert!(resident <= budget, "{resident} bytes resident of {budget}");
        }
    }

    fn kind(&self) -> &'static str {
        "lacuna"
    }
}
