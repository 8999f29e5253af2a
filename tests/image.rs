//! Images: what an arena was saved as is what is brought up, here and in other processes; saves write what
//! has changed; and what is no image, or not a whole one, is refused.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Backend, ErrorKind, ImageInfo, Operation, SparseArray, Template, Window};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use support::{
    assert_success, backend, bytes, discard, file_of, in_child, load, noise, page, store,
};

const CHUNK: usize = 2 << 20;

fn bring_up(file: &File, len: usize) -> Arena {
    Arena::builder(len).template(Template::image(file).unwrap()).reserve().unwrap()
}

/// Asserts that both have the same bytes in some pages.
#[track_caller]
fn assert_same(one: &Arena, other: &Arena, pages: impl IntoIterator<Item = usize>) {
    for index in pages {
        let bytes = |arena: &Arena| {
            // SAFETY: the page is within the arena, to which nobody writes.
            unsafe { std::slice::from_raw_parts(arena.as_ptr().add(index * page()), page()) }
                .to_vec()
        };
        assert!(bytes(one) == bytes(other), "page {index} differs");
    }
}

/// Writes something of its own to each page.
fn scatter(arena: &Arena, pages: &[usize]) {
    for &index in pages {
        let content = noise(64, index as u64);
        content
            .iter()
            .enumerate()
            .for_each(|(at, byte)| store(arena, index * page() + 7 * at, *byte));
    }
}

const PAGES: [usize; 9] = [0, 1, 2, 511, 512, 700, 1023, 1024, 1299];

fn round_trip(template: Template) {
    let file = file_of(b"");
    let arena = Arena::builder(1300 * page()).template(template).reserve().unwrap();
    scatter(&arena, &PAGES);
    let saved = arena.save(&file).unwrap();
    assert!(saved.written_bytes >= PAGES.len() * page());
    assert_eq!((saved.written_bytes, saved.generation), (saved.image_bytes, 1));
    let info = ImageInfo::verify(&file, 0).unwrap();
    assert_eq!((info.arena_bytes, info.present_bytes), (arena.len(), saved.image_bytes));
    for window in [Window::Pages(1), Window::Pages(16), Window::Adaptive] {
        let template = Template::file(&file).unwrap();
        assert_eq!(template.image_len(), Some(arena.len()));
        let again =
            Arena::builder(arena.len()).template(template).window(window).reserve().unwrap();
        assert_same(&arena, &again, (0..1300).rev().step_by(13).chain(PAGES));
        assert_same(&arena, &again, 0..1300);
        // What is there as it was is known to be there.
        assert_eq!(again.save(&file).unwrap().written_bytes, 0);
    }
    let populated = bring_up(&file, arena.len());
    populated.populate(0..arena.len()).unwrap();
    assert_same(&arena, &populated, 0..1300);
}

#[test]
fn zeroes_come_back() {
    round_trip(Template::zero());
}

#[test]
fn repeated_values_come_back() {
    round_trip(Template::repeat(&0xDEAD_BEEF_u32).unwrap());
    round_trip(Template::repeat(&[1u8, 2, 3]).unwrap());
    round_trip(Template::repeat(&[5u8; 2048]).unwrap());
    let file = file_of(b"");
    let arena = Arena::builder(1 << 30).template(Template::repeat(&[1u8, 2, 3]).unwrap());
    assert_eq!(arena.reserve().unwrap().save(&file).unwrap().written_bytes, 0);
    assert_eq!(ImageInfo::read(&file, 0).unwrap().fill_bytes, 3);
    // The value goes on in a longer arena.
    assert_eq!(bytes(&bring_up(&file, 2 << 30), (1 << 30) + 2..(1 << 30) + 5), [1, 2, 3]);
}

#[test]
fn bytes_and_files_come_back() {
    let content = noise(300 * page() + 100, 5);
    round_trip(Template::bytes(&content).unwrap());
    round_trip(Template::file(&file_of(&content)).unwrap());
}

#[test]
fn sparse_arrays_come_back() {
    let file = file_of(b"");
    let mut table = SparseArray::<u64>::filled(1 << 37, u64::MAX).unwrap();
    table[1 << 36] = 7;
    table[9] = 8;
    assert_eq!(table.arena().save(&file).unwrap().written_bytes, 2 * page());
    drop(table);
    let arena = bring_up(&file, 1 << 40);
    let word = |index: usize| {
        // SAFETY: within the arena, aligned, and any bytes are a number.
        unsafe { arena.as_ptr().cast::<u64>().add(index).read() }
    };
    assert_eq!(
        [9, 10, 1 << 36, (1 << 36) + 1, (1 << 37) - 1].map(word),
        [8, u64::MAX, 7, u64::MAX, u64::MAX]
    );
    // Nothing but what was touched.
    assert!(arena.stats().resident_bytes <= 8 * page());
}

#[test]
fn another_process_brings_it_up() {
    let path = std::env::temp_dir().join(format!("lacuna-image-{}", std::process::id()));
    let path = std::env::var("LACUNA_TEST_IMAGE").map_or(path, Into::into);
    let open = || File::options().read(true).write(true).create(true).truncate(false).open(&path);
    if std::env::var("LACUNA_TEST_IMAGE").is_err() {
        let arena = Arena::builder(1 << 32).reserve().unwrap();
        scatter(&arena, &[3, 99, 70_000]);
        arena.save(&open().unwrap()).unwrap();
        // SAFETY: no other thread of this test binary looks at this variable.
        unsafe { std::env::set_var("LACUNA_TEST_IMAGE", &path) };
    }
    let output = in_child("another_process_brings_it_up", "reader", || {
        let expected = Arena::builder(1 << 32).reserve().unwrap();
        scatter(&expected, &[3, 99, 70_000]);
        let arena = bring_up(&open().unwrap(), 1 << 32);
        assert_same(&arena, &expected, [3, 4, 98, 99, 100, 70_000]);
        // It changes a page, and saves to the same file.
        store(&arena, 99 * page() + 5, 123);
        let saved = arena.save(&open().unwrap()).unwrap();
        assert_eq!((saved.written_bytes, saved.generation), (page(), 2));
    });
    assert_success(&output);
    let arena = bring_up(&open().unwrap(), 1 << 32);
    assert_eq!(load(&arena, 99 * page() + 5), 123);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_window_into_a_larger_file() {
    let file = file_of(b"");
    let arena = Arena::builder(700 * page()).reserve().unwrap();
    scatter(&arena, &[0, 5, 600]);
    arena.save(&file).unwrap();
    let mut image = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut image, 0).unwrap();
    let offset = 3 * page() as u64;
    let bundle = file_of(&noise(image.len() + 10 * page(), 1));
    bundle.write_all_at(&image, offset).unwrap();
    assert_eq!(Template::image(&bundle).unwrap_err().kind(), ErrorKind::NotAnImage);
    let unaligned = Template::image_at(&bundle, offset + 1).unwrap_err();
    assert_eq!(unaligned.kind(), ErrorKind::Unaligned);
    assert_eq!(ImageInfo::verify(&bundle, offset).unwrap().present_bytes, 3 * page());
    let template = Template::image_at(&bundle, offset).unwrap();
    let again = Arena::builder(arena.len()).template(template).reserve().unwrap();
    assert_same(&arena, &again, 0..700);
    // Not the image in the file that it is saved to, though that is at the same place of another file.
    assert_eq!(again.save(&file).unwrap().written_bytes, 0);
}

#[test]
fn later_saves_write_what_has_changed() {
    let file = file_of(b"");
    let arena = Arena::builder(1 << 30).window(Window::Pages(1)).reserve().unwrap();
    let blocks = || file.metadata().unwrap().blocks() * 512;
    (0..1000).for_each(|index| store(&arena, index * page(), 1));
    assert_eq!(arena.save(&file).unwrap().written_bytes, 1000 * page());
    let first = blocks();
    assert!(first < 1010 * page() as u64, "{first}");
    store(&arena, 10 * page(), 2);
    store(&arena, 999 * page(), 2);
    store(&arena, 50_000 * page(), 2);
    let saved = arena.save(&file).unwrap();
    assert_eq!((saved.written_bytes, saved.image_bytes), (3 * page(), 1001 * page()));
    assert!(blocks() < first + 10 * page() as u64, "{} after {first}", blocks());
    assert_eq!(arena.save(&file).unwrap(), lacuna_saved(0, 1001, saved.generation));

    // Pages that are gone, or have become zeroes.
    discard(&arena, 0..page());
    (0..page()).for_each(|at| store(&arena, 5 * page() + at, 0));
    let saved = arena.save(&file).unwrap();
    assert_eq!((saved.written_bytes, saved.image_bytes), (0, 999 * page()));
    assert_same(&arena, &bring_up(&file, 1 << 30), [0, 1, 5, 10, 998, 999, 1000, 50_000]);
}

/// What `save` tells, in pages.
fn lacuna_saved(written: usize, image: usize, generation: u64) -> lacuna::Saved {
    let arena = Arena::builder(1).reserve().unwrap();
    let mut saved = arena.save(&file_of(b"")).unwrap();
    (saved.written_bytes, saved.image_bytes) = (written * page(), image * page());
    saved.generation = generation;
    saved
}

#[test]
fn an_image_saved_over_itself_again_and_again() {
    let file = file_of(b"");
    let model = Arena::builder(1 << 26).reserve().unwrap();
    (0..2000).for_each(|index| scatter(&model, &[index * 3]));
    model.save(&file).unwrap();
    let arena = bring_up(&file, 1 << 26);
    for round in 0..6usize {
        for index in [round, 3 * round, 3000, 3003 + round] {
            store(&arena, index * page() + 9, round as u8 + 1);
            store(&model, index * page() + 9, round as u8 + 1);
        }
        let saved = arena.save(&file).unwrap();
        assert!(saved.written_bytes <= 4 * page(), "{saved:?}");
        // What was not touched was not read either.
        assert!(arena.stats().resident_bytes < 100 * page());
        let again = bring_up(&file, 1 << 26);
        assert_same(&model, &again, (0..7000).step_by(7).chain(2990..3020));
    }
    // As brought up, or as saved since.
    discard(&arena, 0..arena.len());
    arena.save(&file).unwrap();
    ImageInfo::verify(&file, 0).unwrap();
    assert_same(&arena, &bring_up(&file, 1 << 26), (0..7000).step_by(7));
}

#[test]
fn threads_go_on_writing() {
    let file = file_of(b"");
    let arena = Arena::builder(8 * CHUNK).reserve().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2usize {
            let (arena, stop) = (&arena, &stop);
            scope.spawn(move || {
                let mut rng = support::Rng(thread as u64);
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let index = 2 * rng.below(arena.len() / page() / 2) + thread;
                    store(arena, index * page() + rng.below(page()), index as u8);
                }
            });
        }
        for _ in 0..30 {
            arena.save(&file).unwrap();
            ImageInfo::verify(&file, 0).unwrap();
            let again = bring_up(&file, arena.len());
            for index in (0..arena.len() / page()).step_by(17) {
                let page = bytes(&again, index * page()..index * page() + 64);
                assert!(page.iter().all(|byte| [0, index as u8].contains(byte)));
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_forked_child_saves_its_own() {
    let (file, child_file) = (file_of(b""), file_of(b""));
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    scatter(&arena, &[1, 2]);
    arena.save(&file).unwrap();
    support::fork::fork(|| {
        store(&arena, 5 * page(), 1);
        assert_eq!(arena.save(&child_file).unwrap().image_bytes, 3 * page());
        assert_eq!(arena.save(&file).unwrap().written_bytes, page());
    });

    assert_eq!(load(&bring_up(&child_file, 1 << 30), 5 * page()), 1);
    assert_eq!(arena.save(&file).unwrap().image_bytes, 2 * page());
}

#[test]
fn what_cannot_be_saved_is_refused() {
    #[track_caller]
    fn refused(template: Template, kind: ErrorKind) {
        let arena = Arena::builder(1 << 20).template(template).reserve().unwrap();
        let error = arena.save(&file_of(b"")).unwrap_err();
        assert_eq!((error.operation(), error.kind()), (Operation::Save, kind));
        assert!(error.hint().is_some());
    }
    refused(support::numbered_pages(), ErrorKind::TemplateIsFunction);
    refused(Template::repeat(&[7u8; 2049]).unwrap(), ErrorKind::FillTooLong);

    let arena = Arena::builder(1 << 20).reserve().unwrap();
    let error = arena.save(&file_of(b"something else")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotAnImage);
    for file in
        [File::open("Cargo.toml").unwrap(), File::options().write(true).open("/dev/null").unwrap()]
    {
        let error = arena.save(&file).unwrap_err();
        assert_eq!(error.errno(), Some(lacuna::Errno::EBADF), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn a_file_that_somebody_saves_to_is_busy() {
    let file = file_of(b"");
    let arena = Arena::builder(1 << 20).reserve().unwrap();
    arena.save(&file).unwrap();
    // SAFETY: zeroes are a valid request for a lock of the whole file.
    let lock = |kind: i32| unsafe {
        let mut request: libc::flock = std::mem::zeroed();
        request.l_type = kind as _;
        libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_OFD_SETLK, &raw const request)
    };
    assert_eq!(lock(libc::F_WRLCK), 0);
    assert_eq!(arena.save(&file).unwrap_err().kind(), ErrorKind::ImageBusy);
    assert_eq!(lock(libc::F_UNLCK), 0);
    arena.save(&file).unwrap();
}

#[test]
fn a_full_disk_leaves_the_old_image() {
    let output = in_child("a_full_disk_leaves_the_old_image", "full", || {
        let path = std::env::temp_dir().join(format!("lacuna-full-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let arena = Arena::builder(64 * CHUNK).reserve().unwrap();
        scatter(&arena, &PAGES);
        arena.save(&file).unwrap();
        let old = bring_up(&file, 64 * CHUNK);
        let len = file.metadata().unwrap().len();
        // SAFETY: sets a limit and a disposition of this process's, which is the test's own.
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: len + 4096, rlim_max: libc::RLIM_INFINITY };
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
        scatter(&arena, &[3, 600, 20_000, 30_000]);
        store(&arena, 0, 99);
        let error = arena.save(&file).unwrap_err();
        assert_eq!(error.errno(), Some(lacuna::Errno::EFBIG));
        assert!(error.hint().is_some());
        ImageInfo::verify(&file, 0).unwrap();
        assert_same(&old, &bring_up(&file, 64 * CHUNK), (0..1300).chain([20_000]));
        // SAFETY: as above.
        unsafe {
            let limit =
                libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
            assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit), 0);
        }
        arena.save(&file).unwrap();
        assert_same(&arena, &bring_up(&file, 64 * CHUNK), (0..1300).chain([20_000]));
    });
    assert_success(&output);
}

#[test]
fn both_backends_bring_up_what_the_other_saved() {
    let file = file_of(b"");
    let reserve =
        |which, template| Arena::builder(8 * CHUNK).backend(which).template(template).reserve();
    let kinds = [Backend::Mprotect, backend()];
    for (one, other) in [(kinds[0], kinds[1]), (kinds[1], kinds[0])] {
        file.set_len(0).unwrap();
        let arena = reserve(one, Template::zero()).unwrap();
        scatter(&arena, &PAGES);
        arena.populate(3 * CHUNK..4 * CHUNK).unwrap();
        arena.save(&file).unwrap();
        let again = reserve(other, Template::image(&file).unwrap()).unwrap();
        assert_same(&arena, &again, 0..1300);
        assert_eq!(again.save(&file).unwrap().written_bytes, 0);
    }
}

/// An arena is saved, and any number of others begin with what it held, in common.
#[test]
fn saved_arenas_can_be_shared() {
    let page = page();
    let arena = Arena::builder(1 << 30).reserve().unwrap();
    let touched = [0, 1, 7, 511, 512, 5000];
    for at in touched {
        // SAFETY: the page is within the arena, which nobody else uses.
        unsafe { arena.as_ptr().add(at * page).write_bytes((at % 255) as u8 + 1, page) };
    }
    let file = file_of(b"");
    arena.save(&file).unwrap();
    let template = Template::image(&file).unwrap().shared().unwrap();
    for _ in 0..2 {
        let copy = Arena::builder(1 << 30).template(template.clone()).reserve().unwrap();
        for at in 0..6000 {
            // SAFETY: as above.
            let byte = unsafe { copy.as_ptr().add(at * page + 99).read() };
            assert_eq!(
                byte,
                if touched.contains(&at) { (at % 255) as u8 + 1 } else { 0 },
                "page {at}"
            );
        }
        assert_eq!(copy.stats().resident_bytes, 0);
        // SAFETY: as above.
        unsafe { copy.as_ptr().add(7 * page).write(0) };
    }

    let sevens = Template::repeat(&7u8).unwrap();
    let arena = Arena::builder(1 << 30).template(sevens).reserve().unwrap();
    let file = file_of(b"");
    arena.save(&file).unwrap();
    let error = Template::image(&file).unwrap().shared().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotShareable);
}
