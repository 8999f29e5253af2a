//! A process that saves over and over is killed at random moments, 200 times or `LACUNA_KILLS`: the file has
//! the old image or the new one, always, and never a mix.

#![allow(missing_docs, reason = "a test")]

mod support;

use lacuna::{Arena, ImageInfo, Template};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{Rng, Watchdog, bytes, load, page, store};

const LEN: usize = 64 << 20;
/// Pages that have content in one round or another.
const REACH: usize = 3000;
/// Tells the child where to go on: the round, and the file.
const PLAN: &str = "LACUNA_TEST_PLAN";

/// What page `index` is full of in the image of a round: it changes every few rounds, is zero in some, and
/// the furthest pages, behind which the file's index has to go, come late.
fn content(round: u64, index: usize) -> u8 {
    let mut rng = Rng(index as u64);
    let changes = (round + rng.next() % 7) / (2 + rng.next() % 5);
    if changes % 4 == 3 || (index > REACH / 2 && round < 50) {
        0
    } else {
        1 + (changes % 200) as u8
    }
}

fn pages() -> impl Iterator<Item = usize> {
    (0..REACH).step_by(11)
}

/// The bytes of a page that are looked at.
fn samples(index: usize) -> [usize; 3] {
    [0, page() / 2, page() - 1].map(|at| index * page() + at)
}

/// The last page has the number of the round.
fn number() -> usize {
    LEN - page()
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

fn bring_up(file: &File) -> Arena {
    let template = Template::image(file).unwrap();
    Arena::builder(LEN).template(template).reserve().unwrap()
}

/// Saves each round from the one after `round` on, and tells when it has.
fn save_for_ever(path: &Path, mut round: u64) -> ! {
    let file = open(path);
    // Now an arena that has it all, now one that brings up the image and changes it.
    let arena = match round.is_multiple_of(2) || file.metadata().unwrap().len() == 0 {
        true => Arena::builder(LEN).reserve().unwrap(),
        false => bring_up(&file),
    };
    println!("\nready");
    loop {
        round += 1;
        for index in pages() {
            let value = content(round, index);
            samples(index).into_iter().for_each(|at| store(&arena, at, value));
        }
        round
            .to_le_bytes()
            .iter()
            .enumerate()
            .for_each(|(at, it)| store(&arena, number() + at, *it));
        arena.save(&file).unwrap();
        println!("\nsaved {round}");
    }
}

/// Asserts that every page is of the round that the image says it is, and tells which.
fn check(path: &Path) -> u64 {
    let file = open(path);
    ImageInfo::verify(&file, 0).unwrap();
    let arena = bring_up(&file);
    let round = bytes(&arena, number()..number() + 8).try_into().unwrap();
    let round = u64::from_le_bytes(round);
    for index in pages() {
        let found = samples(index).map(|at| load(&arena, at));
        assert_eq!(found, [content(round, index); 3], "round {round}, page {index}");
    }
    round
}

fn spawn(path: &Path, round: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "killed_over_and_over", "--nocapture", "--test-threads=1"]);
    command.env(PLAN, format!("{round} {}", path.display()));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
}

/// Has a process save from `round` on and kills it; tells the last round that it said it had saved.
fn kill_one(path: &Path, round: u64, rng: &mut Rng) -> u64 {
    let mut child = spawn(path, round);
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "the child has died by itself");
    }
    std::thread::sleep(Duration::from_micros(rng.below(100_000) as u64));
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    let saved = rest.lines().filter_map(|line| line.strip_prefix("saved ")?.parse().ok());
    saved.max().unwrap_or(round)
}

#[test]
fn killed_over_and_over() {
    if let Ok(plan) = std::env::var(PLAN) {
        let (round, path) = plan.split_once(' ').unwrap();
        save_for_ever(Path::new(path), round.parse().unwrap());
    }
    let _watchdog = Watchdog::new("image_kill", 500);
    let path = std::env::temp_dir().join(format!("lacuna-kill-{}", std::process::id()));
    let (mut round, mut torn, mut rng) = (0, 0, Rng(7));
    let kills = std::env::var("LACUNA_KILLS").map_or(200, |it| it.parse().unwrap());
    for _ in 0..kills {
        let saved = kill_one(&path, round, &mut rng);
        if saved == 0 && Template::image(&open(&path)).is_err() {
            // Not even the first. What is left of it is no image, and nothing to go on from.
            open(&path).set_len(0).unwrap();
            continue;
        }
        round = check(&path);
        assert!(round == saved || round == saved + 1, "{round} is there, {saved} was saved");
        torn += u64::from(round != saved);
    }
    std::fs::remove_file(&path).unwrap();
    println!("{round} saves, {kills} kills, {torn} of them between a commit and its message");
    assert!(round > kills / 4, "hardly anything was ever saved");
}
