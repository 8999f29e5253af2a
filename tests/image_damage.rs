//! Images that somebody has changed or cut short, and files that are none: each is refused, or has the
//! right content all the same. Nothing that a checksum covers is ever wrong and not noticed.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, Error, ErrorKind, ImageInfo, Template};
use std::fs::File;
use std::os::unix::fs::FileExt;
use support::{file_of, load, noise, page, store};

const PAGES: [usize; 5] = [0, 3, 511, 512, 1100];
const LEN: usize = 1200 * 4096;
const SUPERBLOCK: usize = 4096;
/// Groups of 512 pages, each with two places for each.
const GROUPS: usize = 3;
/// Bytes of the index: for each group its number and two bits a page, for each page a checksum.
const MAP: usize = GROUPS * (8 + 128);
const SUMS: usize = PAGES.len() * 4;

fn index() -> usize {
    2 * page() + GROUPS * 1024 * page()
}

fn arena() -> Arena {
    let template = Template::repeat(&[1u8, 2, 3]).unwrap();
    let arena = Arena::builder(LEN).template(template).reserve().unwrap();
    for index in PAGES {
        let content = noise(page(), index as u64);
        content.iter().enumerate().for_each(|(at, byte)| store(&arena, index * page() + at, *byte));
    }
    arena
}

/// An image, and its bytes, most of which are a hole.
fn saved() -> (File, Vec<u8>) {
    let file = file_of(b"");
    arena().save(&file).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes.len(), index() + MAP + SUMS);
    (file, bytes)
}

/// Brings an image up and checks the first byte of each page, and of some absent ones.
fn bring_up(file: &File) -> Result<(), Error> {
    let template = Template::image(file)?;
    let arena = Arena::builder(LEN).template(template).reserve()?;
    for index in PAGES {
        assert_eq!(load(&arena, index * page()), noise(1, index as u64)[0], "page {index}");
    }
    for index in [1, 510, 700, 1199] {
        assert_eq!(load(&arena, index * page()), [1, 2, 3][index * page() % 3], "page {index}");
    }
    Ok(())
}

/// Has `check` look at the image with a byte at each of `places` turned into another.
fn flipped(places: &[usize], mut check: impl FnMut(&File)) {
    thread_local!(static IMAGE: (File, Vec<u8>) = saved());
    IMAGE.with(|(file, bytes)| {
        for mask in [0x01, 0x80] {
            places
                .iter()
                .for_each(|at| file.write_all_at(&[bytes[*at] ^ mask], *at as u64).unwrap());
            check(file);
            places.iter().for_each(|at| file.write_all_at(&[bytes[*at]], *at as u64).unwrap());
        }
    });
}

fn kind<T>(result: Result<T, Error>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

/// Each byte of a superblock that means something, and some of those that are only under its checksum.
fn superblock_bytes() -> impl Iterator<Item = usize> {
    (0..100).chain((100..SUPERBLOCK).step_by(41)).chain(SUPERBLOCK - 5..SUPERBLOCK)
}

#[test]
fn one_superblock_may_be_damaged() {
    for at in superblock_bytes() {
        for copy in [0, SUPERBLOCK] {
            flipped(&[at + copy], |file| bring_up(file).unwrap());
        }
    }
}

#[test]
fn two_damaged_superblocks_are_refused() {
    for at in superblock_bytes() {
        flipped(&[at, at + SUPERBLOCK], |file| {
            let expected = if at < 16 { ErrorKind::NotAnImage } else { ErrorKind::ImageDamaged };
            assert_eq!(kind(Template::image(file)), Some(expected), "byte {at}");
            assert_eq!(kind(ImageInfo::read(file, 0)), Some(expected), "byte {at}");
            assert_eq!(kind(arena().save(file)), Some(expected), "byte {at}");
            // Bytes for bytes, unless they say that they are an image.
            assert_eq!(kind(Template::file(file)), (at >= 16).then_some(expected), "byte {at}");
        });
    }
}

#[test]
fn a_damaged_index_is_refused() {
    for at in index()..index() + MAP {
        flipped(&[at], |file| assert_eq!(kind(bring_up(file)), Some(ErrorKind::ImageDamaged)));
    }
    for at in index() + MAP..index() + MAP + SUMS {
        flipped(&[at], |file| {
            bring_up(file).unwrap();
            assert_eq!(kind(ImageInfo::verify(file, 0)), Some(ErrorKind::ImageDamaged));
            assert_eq!(kind(arena().save(file)), Some(ErrorKind::ImageDamaged));
        });
    }
}

#[test]
fn a_damaged_page_is_found_and_saved_anew() {
    let last = 2 * page() + 2 * 1024 * page() + (1100 - 1024) * page() + 5;
    for at in [2 * page(), 5 * page() + 17, last] {
        flipped(&[at], |file| {
            assert_eq!(kind(ImageInfo::verify(file, 0)), Some(ErrorKind::ImageDamaged));
        });
    }
    let (file, bytes) = saved();
    file.write_all_at(&[!bytes[last]], last as u64).unwrap();
    assert_eq!(arena().save(&file).unwrap().written_bytes, page());
    ImageInfo::verify(&file, 0).unwrap();
    bring_up(&file).unwrap();
}

#[test]
fn an_image_that_is_cut_short_is_refused() {
    let (file, bytes) = saved();
    let lengths = (0..2 * page()).step_by(97).chain([1, 16, SUPERBLOCK - 1, SUPERBLOCK]);
    let lengths = lengths.chain((0..=index()).step_by(page() * 64));
    for len in lengths.chain(index() - 1..index() + MAP + SUMS) {
        file.set_len(len as u64).unwrap();
        let found = kind(Template::image(&file));
        match len {
            0..16 => assert_eq!(found, Some(ErrorKind::NotAnImage), "{len} bytes"),
            _ => assert_eq!(found, Some(ErrorKind::ImageDamaged), "{len} bytes"),
        }
        file.write_all_at(&bytes[len..], len as u64).unwrap();
    }
    bring_up(&file).unwrap();
}

/// CRC-32 as zlib has it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0xEDB8_8320 } else { 0 }
        })
    })
}

/// Both superblocks with `field` at `at`, under a checksum that is right.
fn forged(bytes: &[u8], at: usize, field: &[u8]) -> Vec<u8> {
    let mut superblock = bytes[..SUPERBLOCK].to_vec();
    superblock[at..at + field.len()].copy_from_slice(field);
    let sum = crc(&superblock[..SUPERBLOCK - 4]);
    superblock[SUPERBLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    superblock.repeat(2)
}

#[test]
fn images_of_elsewhere_and_later_are_refused() {
    let (file, bytes) = saved();
    file.write_all_at(&forged(&bytes, 16, &1u32.to_le_bytes()), 0).unwrap();
    bring_up(&file).unwrap();
    let cases = [
        (16, 2u32.to_le_bytes(), ErrorKind::ImageVersion),
        (20, 65536u32.to_le_bytes(), ErrorKind::ImageOfOtherMachine),
        (24, 0x0102_0304u32.swap_bytes().to_ne_bytes(), ErrorKind::ImageOfOtherMachine),
        (28, 2049u32.to_le_bytes(), ErrorKind::ImageDamaged),
    ];
    for (at, field, expected) in cases {
        file.write_all_at(&forged(&bytes, at, &field), 0).unwrap();
        let error = Template::file(&file).unwrap_err();
        assert_eq!(error.kind(), expected);
        assert!(error.hint().is_some());
        assert_eq!(kind(arena().save(&file)), Some(expected));
    }
}

/// Numbers that somebody made up lead nobody out of the file, whatever they are.
#[test]
fn made_up_numbers_do_no_harm() {
    let (file, bytes) = saved();
    let other = arena();
    store(&other, 0, 7);
    let numbers =
        [0, 1, 2, 4, 5, 6, 1200, 4096, 1 << 20, 1 << 40, 1 << 62, u64::MAX, u64::MAX - 4095];
    for at in (32..88).step_by(8) {
        for number in numbers {
            file.write_all_at(&forged(&bytes, at, &number.to_le_bytes()), 0).unwrap();
            if let Ok(template) = Template::image(&file) {
                let len = template.image_len().unwrap();
                let Ok(arena) = Arena::builder(len).template(template).reserve() else { continue };
                PAGES
                    .iter()
                    .filter(|it| **it * page() < len)
                    .for_each(|it| _ = load(&arena, it * page()));
            }
            let _ = ImageInfo::verify(&file, 0);
            let _ = other.save(&file);
        }
    }
}

#[test]
fn other_files_are_no_images() {
    for content in [&b""[..], b"lacuna image", b"text", &[0; 20_000], &noise(20_000, 1)] {
        let file = file_of(content);
        assert_eq!(kind(Template::image(&file)), Some(ErrorKind::NotAnImage));
        assert_eq!(kind(ImageInfo::verify(&file, 0)), Some(ErrorKind::NotAnImage));
        assert!(Template::file(&file).is_ok());
    }
    let directory = File::open(".").unwrap();
    assert_eq!(kind(Template::image(&directory)), Some(ErrorKind::TemplateUnreadable));
}

#[test]
fn a_shorter_arena_is_refused() {
    let (file, _) = saved();
    let template = Template::image(&file).unwrap();
    let error = Arena::builder(LEN - page()).template(template).reserve().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TemplateTooLong);
}

#[test]
fn a_file_cut_short_later_is_a_violation() {
    let (file, _) = saved();
    let arena = Arena::builder(LEN).template(Template::image(&file).unwrap()).reserve().unwrap();
    file.set_len(2 * page() as u64).unwrap();
    assert_eq!(kind(arena.populate(0..page())), Some(ErrorKind::TemplateUnreadable));
    assert_eq!(kind(arena.save(&file_of(b""))), Some(ErrorKind::TemplateUnreadable));
    // What the image does not have needs no file.
    assert_eq!(load(&arena, page()), [1, 2, 3][page() % 3]);
}
