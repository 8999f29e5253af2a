//! How much stack the handler takes, measured on a painted alternate stack: it must get by on the
//! 8 KiB that threads usually have, on top of the kernel's signal frame.

#![allow(missing_docs, reason = "a test")]

use lacuna::{Arena, Template, page_size};
use std::ptr;

const SIZE: usize = 64 << 10;
const PAINT: u8 = 0xa5;
const CHUNK: usize = 2 << 20;

/// Bytes that the handler may take: optimised as users run it, or with the many copies of a debug
/// build.
const MOST: usize = if cfg!(debug_assertions) { 5 << 10 } else { 512 };

/// An alternate stack for the calling thread.
struct Painted(Vec<u8>);

impl Painted {
    fn install() -> Self {
        let mut stack = Self(vec![PAINT; SIZE]);
        let alternate =
            libc::stack_t { ss_sp: stack.0.as_mut_ptr().cast(), ss_flags: 0, ss_size: SIZE };
        // SAFETY: the memory lives until the stack is disabled again.
        assert_eq!(unsafe { libc::sigaltstack(&raw const alternate, ptr::null_mut()) }, 0);
        stack
    }

    /// The bytes that `run` makes signal handlers use.
    fn depth(&mut self, run: impl FnOnce()) -> usize {
        // SAFETY: no handler runs now. Volatile, since handlers write behind the compiler's back.
        self.0.iter_mut().for_each(|byte| unsafe { ptr::from_mut(byte).write_volatile(PAINT) });
        run();
        // SAFETY: as above.
        let is_paint = |byte: &u8| unsafe { ptr::from_ref(byte).read_volatile() } == PAINT;
        SIZE - self.0.iter().position(|byte| !is_paint(byte)).unwrap_or(SIZE)
    }
}

impl Drop for Painted {
    fn drop(&mut self) {
        let none = libc::stack_t { ss_sp: ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
        // SAFETY: the thread is not on its alternate stack.
        unsafe { libc::sigaltstack(&raw const none, ptr::null_mut()) };
    }
}

/// What a handler that does nothing takes: the kernel's frame.
fn frame(stack: &mut Painted) -> usize {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: zeroes are a valid sigaction, and the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &raw const action, ptr::null_mut()), 0);
        stack.depth(|| assert_eq!(libc::raise(libc::SIGUSR2), 0))
    }
}

fn touch(arena: &Arena, page: usize, write: bool) {
    // SAFETY: the page lies within the arena, which nobody else uses.
    unsafe {
        let byte = arena.as_ptr().add(page * page_size());
        if write { byte.write_volatile(1) } else { _ = byte.read_volatile() }
    }
}

#[test]
fn every_way_to_resolve_a_fault_fits() {
    let pages = CHUNK / page_size();
    let mut stack = Painted::install();
    let frame = frame(&mut stack);
    let mut check = |what: &str, run: &dyn Fn()| {
        let depth = stack.depth(run).saturating_sub(frame);
        println!("{what}: {depth} bytes");
        assert!(depth > 0, "{what} took no stack: the handler did not run");
        assert!(depth <= MOST, "{what} takes {depth} bytes of stack");
    };

    let plain = Arena::builder(1 << 40).reserve().unwrap();
    check("a write", &|| touch(&plain, 0, true));
    check("a read", &|| touch(&plain, 9 * pages, false));
    check("a window", &|| (1..16).for_each(|page| touch(&plain, page, true)));
    check("a huge page", &|| (16..2 * pages).for_each(|page| touch(&plain, page, true)));
    check("lending", &|| {
        for page in [20 * pages + 3, 20 * pages + 30, 20 * pages + 300] {
            touch(&plain, page, true);
        }
    });

    // SAFETY: nobody has a reference into the arena.
    unsafe { plain.poison(30 * CHUNK + 8 * page_size()..31 * CHUNK) }.unwrap();
    check("a window beside poison", &|| {
        (0..8).for_each(|page| touch(&plain, 30 * pages + page, true));
    });

    let template = Template::repeat(&[1u8, 2, 3]).unwrap();
    let repeated = Arena::builder(1 << 40).template(template).reserve().unwrap();
    check("a template", &|| (0..2 * pages).for_each(|page| touch(&repeated, page, true)));

    let budget = 4 * CHUNK;
    let bounded = Arena::builder(1 << 40).budget(budget).reserve().unwrap();
    check("lending and recalling under a budget", &|| {
        for page in [3, 30, 300, 3 * pages] {
            touch(&bounded, page, true);
        }
        let lent = bounded.stats().lent_bytes;
        assert!(lent > 0, "nothing was lent");
        for page in 4 * pages..4 * pages + budget / page_size() - 4 {
            touch(&bounded, page, true);
        }
        let left = bounded.stats().lent_bytes;
        assert!(left < lent / 2, "nothing was recalled: {left} of {lent} bytes are lent");
    });
}
