//! How much stack the handler takes, measured on a painted alternate stack: it must get by on the
//! 8 KiB that threads usually have, on top of the kernel's signal frame.

#![allow(missing_docs, reason = "a test")]

#[path = "support/pool.rs"]
mod pool;

use lacuna::{Arena, Backend, PageSize, Template, Tracking, page_size};
use pool::Pool;
use std::fs::File;
use std::os::fd::FromRawFd;
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

    for tracking in [Tracking::Kernel, Tracking::Signal] {
        let builder = Arena::builder(1 << 40).backend(Backend::Userfaultfd).tracking(tracking);
        let tracked = builder.reserve().unwrap();
        tracked.populate(0..CHUNK).unwrap();
        if let Err(error) = tracked.checkpoint() {
            eprintln!("NOT RUN: {error}");
            continue;
        }
        check("a new page, tracked", &|| touch(&tracked, 3 * pages, true));
        if tracking == Tracking::Signal {
            check("a write to a protected page", &|| touch(&tracked, 7, true));
        }
    }

    // SAFETY: nobody has a reference into the arena.
    unsafe { plain.poison(30 * CHUNK + 8 * page_size()..31 * CHUNK) }.unwrap();
    check("a window beside poison", &|| {
        (0..8).for_each(|page| touch(&plain, 30 * pages + page, true));
    });

    let template = Template::repeat(&[1u8, 2, 3]).unwrap();
    let repeated = Arena::builder(1 << 40).template(template).reserve().unwrap();
    check("a template", &|| (0..2 * pages).for_each(|page| touch(&repeated, page, true)));
    fn number(index: u64, page: &mut [u8]) {
        page[..8].copy_from_slice(&index.to_ne_bytes());
    }
    // SAFETY: it writes to the page, nothing else.
    let template = unsafe { Template::generate(number) };
    let made = Arena::builder(1 << 40).template(template.clone()).reserve().unwrap();
    check("a page function", &|| (0..2 * pages).for_each(|page| touch(&made, page, true)));

    // The second backend has neither shared memory nor huge pages of the pool.
    let builder = || Arena::builder(1 << 30).backend(Backend::Userfaultfd);
    let ours = builder().share().reserve().unwrap();
    let file = ours.memfd().unwrap();
    let theirs = builder().memfd(&file).reserve().unwrap();
    check("shared memory", &|| (0..40).for_each(|page| touch(&ours, page, true)));
    // SAFETY: nobody has a reference into the arena.
    unsafe { theirs.discard(0..1 << 20) }.unwrap();
    check("shared memory that others discarded", &|| touch(&ours, 9, true));
    if let Some(_pool) = Pool::with(2) {
        let huge = builder().page_size(PageSize::Huge).template(template);
        let huge = huge.reserve().unwrap();
        let touches = || (0..2).for_each(|page| touch(&huge, page * pages, true));
        check("huge pages of the pool", &touches);
    }

    repeated.start_recording(8).unwrap();
    check("recording", &|| {
        (5 * pages..5 * pages + 16).for_each(|page| touch(&repeated, page, true));
    });
    assert_eq!(repeated.stop_recording().unwrap().len(), 8);

    // SAFETY: the name is a C string; the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"image".as_ptr(), 0)) };
    (0..pages).step_by(3).for_each(|page| touch(&plain, page + 50 * pages, true));
    plain.save(&file).unwrap();
    let template = Template::image(&file).unwrap();
    let image = Arena::builder(1 << 40).template(template).reserve().unwrap();
    check("an image", &|| {
        (0..pages).for_each(|page| touch(&image, page + 50 * pages, page % 2 == 0));
        (0..9).for_each(|page| touch(&image, page, page % 2 == 0));
    });

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
