//! What is done: things that Rust programs do, by crates that they use.

use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hint::black_box;

/// A job does the given share of its work.
pub type Job = fn(share: usize);

pub const ALL: [(&str, Job); 5] = [
    ("serde_json: parse, change, print", json),
    ("hashbrown: strings come and go", maps),
    ("regex: compile, and find captures", regexes),
    ("rayon: sort and group strings", sort),
    ("std: trees and growing vectors", trees),
];

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn word(&mut self) -> String {
        let len = 3 + self.below(14) as usize;
        (0..len).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }
}

fn json(share: usize) {
    let mut random = Random(1);
    let records: Vec<Value> = (0..20_000)
        .map(|id| {
            let tags: Vec<String> = (0..random.below(8)).map(|_| random.word()).collect();
            json!({ "id": id, "name": random.word(), "tags": tags, "place": { "x": 1.5, "y": id } })
        })
        .collect();
    let text = serde_json::to_string(&records).expect("plain data");
    for _ in 0..30 / share {
        let mut value: Value = serde_json::from_str(&text).expect("what was printed");
        for record in value.as_array_mut().expect("an array") {
            record["name"] = Value::String(format!("{}!", record["name"]));
        }
        black_box(serde_json::to_string(&value).expect("plain data"));
    }
}

fn maps(share: usize) {
    let mut random = Random(2);
    let mut map: hashbrown::HashMap<String, Vec<u64>> = hashbrown::HashMap::new();
    for step in 0..4_000_000 / share as u64 {
        let key = format!("key-{}", random.below(200_000));
        match random.below(3) {
            0 => _ = map.remove(&key),
            _ => map.entry(key).or_default().push(step),
        }
    }
    black_box(map.len());
}

fn regexes(share: usize) {
    let mut random = Random(3);
    let text: String = (0..60_000).map(|_| random.word() + " ").collect();
    for round in 0..30 / share.min(30) {
        let pattern = format!(r"(\w{{2,4}})([aeiou]+)(\w*){}|(?:b|c|d)(\w+)ing", round % 7);
        let pattern =
            regex::Regex::new(pattern.trim_end_matches(char::is_numeric)).expect("a pattern");
        let found: Vec<Vec<String>> = pattern
            .captures_iter(&text)
            .map(|it| it.iter().flatten().map(|group| group.as_str().to_owned()).collect())
            .collect();
        black_box(found.len());
        for word in text.split(' ').take(60) {
            black_box(regex::RegexSet::new([word, r"\d+", r"[a-z]{3,9}"]).expect("patterns"));
        }
    }
}

fn sort(share: usize) {
    for round in 0..12 / share.min(12) {
        let strings: Vec<String> = (0..1000u64)
            .into_par_iter()
            .flat_map_iter(|part| {
                let mut random = Random(part * 77 + round as u64 + 1);
                (0..500).map(move |_| random.word())
            })
            .collect();
        let mut sorted = strings.clone();
        sorted.par_sort();
        let lengths: Vec<(usize, String)> =
            sorted.par_chunks(50).map(|words| (words.len(), words.concat())).collect();
        black_box((strings, lengths));
    }
}

fn trees(share: usize) {
    let mut random = Random(5);
    for _ in 0..20 / share.min(20) {
        let mut tree: BTreeMap<u64, Box<[u8]>> = BTreeMap::new();
        for _ in 0..100_000 {
            let key = random.below(50_000);
            if tree.remove(&key).is_none() {
                tree.insert(key, vec![1; 10 + random.below(300) as usize].into());
            }
        }
        let mut lines: Vec<Vec<u64>> = Vec::new();
        for _ in 0..2000 {
            let mut line = Vec::new();
            (0..random.below(2000)).for_each(|it| line.push(it));
            lines.push(line);
        }
        let mut one = Vec::new();
        lines.iter().flatten().for_each(|it| one.push(*it));
        black_box((tree.len(), one));
    }
}
