//! Saving to a disk that loses what was not synced: any sector of it, in any order, at any moment. What is
//! found afterwards is the old image or the new one, and from there it goes on.

use super::load::{load, verify};
use super::map::Record;
use super::update::Update;
use super::{Flaw, Storage, place, read_exact};
use nix::errno::Errno;
use std::cell::RefCell;
use std::collections::BTreeMap;

const PAGE: usize = 4096;
const SECTOR: usize = 512;

type Sector = [u8; SECTOR];

/// What survives, and what does only if nothing happens.
#[derive(Clone, Default)]
struct State {
    durable: BTreeMap<u64, Sector>,
    durable_len: u64,
    /// In the order of writing.
    pending: Vec<(u64, Sector)>,
    len: u64,
    /// Steps (sectors and syncs) until the writer dies.
    fuel: usize,
    steps: usize,
}

#[derive(Clone, Default)]
struct Disk(RefCell<State>);

impl State {
    fn step(&mut self) -> Result<(), Errno> {
        self.steps += 1;
        self.fuel = self.fuel.checked_sub(1).ok_or(Errno::EIO)?;
        Ok(())
    }

    fn sector(&self, number: u64) -> Sector {
        let pending = self.pending.iter().rev().find(|(at, _)| *at == number);
        let durable = || self.durable.get(&number).copied();
        pending.map(|(_, sector)| *sector).or_else(durable).unwrap_or([0; SECTOR])
    }
}

impl Storage for Disk {
    fn len(&self) -> Result<u64, Errno> {
        Ok(self.0.borrow().len)
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        let state = self.0.borrow();
        let count = into.len().min(state.len.saturating_sub(offset) as usize);
        let mut done = 0;
        while done < count {
            let at = offset + done as u64;
            let within = at as usize % SECTOR;
            let part = (SECTOR - within).min(count - done);
            let sector = state.sector(at / SECTOR as u64);
            into[done..done + part].copy_from_slice(&sector[within..within + part]);
            done += part;
        }
        Ok(count)
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let mut state = self.0.borrow_mut();
        assert!(offset.is_multiple_of(SECTOR as u64));
        for (index, part) in bytes.chunks(SECTOR).enumerate() {
            state.step()?;
            let number = offset / SECTOR as u64 + index as u64;
            let mut sector = state.sector(number);
            sector[..part.len()].copy_from_slice(part);
            state.pending.push((number, sector));
            state.len = state.len.max(offset + (index * SECTOR + part.len()) as u64);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), Errno> {
        let mut state = self.0.borrow_mut();
        state.step()?;
        let pending = std::mem::take(&mut state.pending);
        state.durable.extend(pending);
        state.durable_len = state.len;
        Ok(())
    }
}

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

impl Disk {
    /// The power fails: each sector that was not synced is what it was, or what one of the writes made it.
    fn fail(&self, rng: &mut Rng) {
        let state = &mut *self.0.borrow_mut();
        let keep = rng.below(5);
        let mut len = state.durable_len;
        for (number, sector) in std::mem::take(&mut state.pending) {
            if rng.below(4) < keep {
                state.durable.insert(number, sector);
                len = len.max(((number + 1) * SECTOR as u64).min(state.len));
            }
        }
        state.len = len;
        state.durable_len = len;
    }
}

/// The pages of an arena, each full of one number.
type Model = BTreeMap<u64, u16>;

fn bytes(tag: u16) -> Vec<u8> {
    tag.to_le_bytes().repeat(PAGE / 2)
}

/// Saves all of a model; what has not changed is left alone now and then, as the template's pages are.
fn save(disk: &Disk, model: &Model, fill: &[u8]) -> Result<(), Flaw> {
    let end = model.last_key_value().map_or(0, |(page, _)| page + 1);
    let mut update = Update::begin(disk, PAGE, end, fill)?;
    for (page, tag) in model {
        update.put(*page, &bytes(*tag))?;
    }
    update.commit(1 << 40).map(drop)
}

fn tag(disk: &Disk, page: u64, second: bool) -> u16 {
    let mut found = vec![0; PAGE];
    read_exact(disk, place(PAGE, page, second), &mut found).unwrap();
    let tag = u16::from_le_bytes([found[0], found[1]]);
    assert_eq!(found, bytes(tag), "page {page} is a mix");
    tag
}

/// What is there, if there is an image.
fn found(disk: &Disk) -> Option<(Model, Vec<Record>)> {
    let image = match load(disk, PAGE) {
        Ok(image) => image,
        Err(Flaw::Kind(_)) => return None,
        Err(flaw) => panic!("{flaw:?}"),
    };
    verify(disk, &image, PAGE).unwrap();
    let pages = image.records.iter().flat_map(Record::places);
    let model = pages.map(|(page, second)| (page, tag(disk, page, second))).collect();
    Some((model, image.records))
}

fn change(model: &mut Model, rng: &mut Rng) {
    for _ in 0..rng.below(12) {
        // A few groups, of which some come late.
        let reach = [8, 520, 520, 1100, 5000][rng.below(5)];
        let page = (reach - rng.below(8)) as u64;
        match rng.below(4) {
            0 => drop(model.remove(&page)),
            _ => drop(model.insert(page, 1 + rng.below(4) as u16)),
        }
    }
}

fn live(seed: u64) {
    let mut rng = Rng(seed);
    let mut disk = Disk::default();
    disk.0.borrow_mut().fuel = usize::MAX;
    // What was found last, and what a failing power may bring back: writers that were killed may have been
    // about to sync what the next ones found.
    let mut now = None;
    let mut possible = vec![None];
    for _ in 0..12 {
        let mut next: Model = now.clone().unwrap_or_default();
        change(&mut next, &mut rng);
        // How long it takes when nothing happens.
        let whole = disk.clone();
        let before = found(&disk);
        whole.0.borrow_mut().steps = 0;
        save(&whole, &next, &[]).unwrap();
        assert_eq!(found(&whole).unwrap().0, next);
        if let Some((model, records)) = &before {
            // Whoever has the image before mapped sees no change.
            for (page, second) in records.iter().flat_map(Record::places) {
                assert_eq!(tag(&whole, page, second), model[&page]);
            }
        }
        let steps = whole.0.borrow().steps;
        disk.0.borrow_mut().fuel = rng.below(steps + 2);
        let done = save(&disk, &next, &[]).is_ok();
        disk.0.borrow_mut().fuel = usize::MAX;
        if done {
            possible = vec![Some(next.clone())];
        }
        let fails = rng.below(3) > 0;
        if fails {
            disk.fail(&mut rng);
        }
        let model = found(&disk).map(|(model, _)| model);
        let old = !done && (model == now || fails && possible.contains(&model));
        assert!(model.as_ref() == Some(&next) || old, "seed {seed}: {model:?}");
        if model.is_none() {
            // Its user truncates the file.
            disk = Disk::default();
            disk.0.borrow_mut().fuel = usize::MAX;
        }
        if fails || model.is_none() {
            possible.clear();
        }
        possible.push(model.clone());
        now = model;
    }
}

#[test]
fn a_disk_that_loses_what_was_not_synced_has_the_old_image_or_the_new_one() {
    (0..200).for_each(live);
}

#[test]
fn pages_that_are_the_fill_are_not_written() {
    let disk = Disk::default();
    disk.0.borrow_mut().fuel = usize::MAX;
    let model = Model::from([(0, 0x0101), (3, 0x0102), (700, 0x0101)]);
    save(&disk, &model, &[1]).unwrap();
    assert_eq!(found(&disk).unwrap().0, Model::from([(3, 0x0102)]));
}

#[test]
fn a_save_of_what_is_there_only_syncs() {
    let disk = Disk::default();
    disk.0.borrow_mut().fuel = usize::MAX;
    let model = Model::from([(0, 1), (3, 2), (700, 1)]);
    save(&disk, &model, &[]).unwrap();
    disk.0.borrow_mut().steps = 0;
    save(&disk, &model, &[]).unwrap();
    assert_eq!(disk.0.borrow().steps, 1);
}
