//! How long it takes to bring up a large image and to read the first so many pages of it that are wanted:
//! by reading the whole file, by mapping it, and by lacuna. And what a save of what has changed costs.

mod common;

use common::statistics::Random;
use common::{Contestant, GIB, MIB, Sample, Session, page};
use lacuna::{Arena, Template, Window};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;

fn main() {
    Session::run(|session| {
        let len = session.mode().pick(4 * GIB, 256 * MIB, 8 * MIB);
        let files = Files::make(len);
        for warm in [true, false] {
            for touches in [1, 100, 10_000].map(|it| it.min(len / page())) {
                bring_up(session, &files, touches, warm);
            }
        }
        saves(session, &files);
    });
}

/// The same bytes, no page of which is zero, as an image and as they are.
struct Files {
    len: usize,
    image: File,
    raw: File,
}

impl Files {
    fn make(len: usize) -> Self {
        let arena = Arena::builder(len).reserve().expect("the arena can be reserved");
        let (image, mut raw) = (temporary("image"), temporary("raw"));
        for start in (0..len).step_by(page()) {
            // SAFETY: the page is within the arena, which nobody else uses.
            let bytes =
                unsafe { std::slice::from_raw_parts_mut(arena.as_ptr().add(start), page()) };
            bytes[..8].copy_from_slice(&(start as u64 + 1).to_ne_bytes());
            raw.write_all(bytes).expect("there is room for the file");
        }
        arena.save(&image).expect("there is room for the image");
        raw.sync_all().expect("the file can be synced");
        Self { len, image, raw }
    }

    /// Has the kernel forget what it knows of the files, so that they are read from the disk.
    fn forget(&self) {
        for file in [&self.image, &self.raw] {
            // SAFETY: it touches no memory.
            unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        }
    }
}

/// A file that goes with its descriptor, where `TMPDIR` says.
fn temporary(name: &str) -> File {
    let name = format!("lacuna-bench-{name}-{}", std::process::id());
    let path: PathBuf = std::env::temp_dir().join(name);
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.expect("a temporary file can be made");
    std::fs::remove_file(&path).expect("it can be unlinked");
    file
}

/// Random pages, and what is expected of them together.
fn wanted(len: usize, count: usize) -> (Vec<usize>, u64) {
    let mut random = Random(1);
    let offsets: Vec<_> = (0..count).map(|_| random.below(len / page()) * page()).collect();
    let sum = offsets.iter().map(|offset| *offset as u64 + 1).fold(0, u64::wrapping_add);
    (offsets, sum)
}

/// The first words of the pages at `offsets`, together.
///
/// # Safety
/// `base` points to memory that has them.
unsafe fn sum(base: *const u8, offsets: &[usize]) -> u64 {
    // SAFETY: as the caller promises; pages are aligned.
    let word = |offset: &usize| unsafe { base.add(*offset).cast::<u64>().read_volatile() };
    offsets.iter().map(word).fold(0, u64::wrapping_add)
}

fn bring_up(session: &mut Session, files: &Files, touches: usize, warm: bool) {
    let (offsets, expected) = wanted(files.len, touches);
    let sample = |answer: &dyn Fn(&[usize]) -> u64| {
        if !warm {
            files.forget();
        }
        let start = Instant::now();
        let found = answer(&offsets);
        let time = start.elapsed();
        assert_eq!(found, expected);
        Sample::timed(time, 1)
    };
    let state = if warm { "in the page cache" } else { "on the disk" };
    let title = format!("{} MiB {state}, until {touches} pages are read", files.len / MIB);
    session.race(
        &title,
        "bring-up",
        vec![
            Contestant::new("read all of it", || sample(&|offsets| read(files, offsets))),
            Contestant::new("mmap", || sample(&|offsets| mmap(files, offsets))),
            Contestant::new("lacuna", || {
                sample(&|offsets| lacuna(files, offsets, Window::Adaptive))
            }),
            Contestant::new("lacuna, a page a fault", || {
                sample(&|offsets| lacuna(files, offsets, Window::Pages(1)))
            }),
        ],
    );
}

fn read(files: &Files, offsets: &[usize]) -> u64 {
    let mut words = vec![0u64; files.len / 8];
    let base = words.as_mut_ptr().cast::<u8>();
    // SAFETY: the words are as many bytes, of which any will do.
    let bytes = unsafe { std::slice::from_raw_parts_mut(base, files.len) };
    (&files.raw).seek(SeekFrom::Start(0)).expect("files can be sought");
    (&files.raw).read_exact(bytes).expect("the file is there");
    // SAFETY: the offsets are the file's.
    unsafe { sum(base, offsets) }
}

fn mmap(files: &Files, offsets: &[usize]) -> u64 {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE);
    // SAFETY: a new mapping, used only here.
    unsafe {
        let fd = files.raw.as_raw_fd();
        let base = libc::mmap(std::ptr::null_mut(), files.len, protection, flags, fd, 0);
        assert_ne!(base, libc::MAP_FAILED);
        let found = sum(base.cast(), offsets);
        libc::munmap(base, files.len);
        found
    }
}

fn lacuna(files: &Files, offsets: &[usize], window: Window) -> u64 {
    let template = Template::image(&files.image).expect("the image is good");
    let arena = Arena::builder(files.len).template(template).window(window);
    let arena = arena.reserve().expect("the arena can be reserved");
    // SAFETY: the offsets are the arena's.
    unsafe { sum(arena.as_ptr(), offsets) }
}

/// Changes some pages of an arena that was brought up, and saves them to the image that it came from.
fn saves(session: &mut Session, files: &Files) {
    let len = files.len;
    let save = |changes: usize| {
        let mut random = Random(changes as u64);
        move || {
            let template = Template::image(&files.image).expect("the image is good");
            let arena = Arena::builder(len).template(template).reserve();
            let arena = arena.expect("the arena can be reserved");
            for _ in 0..changes {
                let offset = random.below(len / page()) * page() + 64;
                // SAFETY: the byte is within the arena, which nobody else uses.
                unsafe { arena.as_ptr().add(offset).write(random.below(256) as u8) };
            }
            let start = Instant::now();
            arena.save(&files.image).expect("there is room for what has changed");
            Sample::timed(start.elapsed(), 1)
        }
    };
    session.race(
        &format!("saving changed pages of {} MiB, synced", len / MIB),
        "save",
        vec![
            Contestant::new("none", save(0)),
            Contestant::new("100", save(100)),
            Contestant::new("10,000", save(10_000.min(len / page()))),
        ],
    );
}
