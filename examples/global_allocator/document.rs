//! Documents: strings, from JSON or text, read or made.

use crate::Result;
use serde_json::Value;
use std::path::Path;

/// Documents that are made if there is no file to read.
const MADE: usize = 24;
/// Records of a made document.
const RECORDS: usize = 20_000;
/// Bytes that making a record takes, at most.
const MADE_RECORD: usize = 1500;
/// Bytes that parsing takes for each byte of a file, at most.
const PARSED: usize = 8;

/// The strings of a document, in order.
pub(crate) struct Document {
    pub(crate) strings: Vec<String>,
}

/// What there is of a document; `None` if there is no memory for it.
type Maybe = Result<Option<Document>>;

/// The documents in these files, or made ones, one at a time.
pub(crate) fn all(files: &[String]) -> Box<dyn Iterator<Item = Maybe> + '_> {
    if files.is_empty() {
        return Box::new((1..=MADE as u64).map(made));
    }
    let named = |file, error| format!("{file}: {error}").into();
    Box::new(
        files.iter().map(move |file| read(Path::new(file)).map_err(|error| named(file, error))),
    )
}

fn made(seed: u64) -> Maybe {
    match has_room(RECORDS * MADE_RECORD) {
        true => parse(&make(seed)),
        false => Ok(None),
    }
}

fn read(path: &Path) -> Maybe {
    let len = usize::try_from(std::fs::metadata(path)?.len())?;
    if !has_room(len.saturating_mul(PARSED)) {
        return Ok(None);
    }
    let text = std::fs::read(path)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return parse(&text);
    }
    let lines = text.split(|&byte| byte == b'\n');
    let strings = lines.map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    Ok(Some(Document { strings }))
}

/// Whether there is room for so many bytes. serde_json, like most code, takes an allocation that
/// fails for the end of the program; who lives within a budget asks in its place.
fn has_room(bytes: usize) -> bool {
    Vec::<u8>::new().try_reserve_exact(bytes).is_ok()
}

/// Every string of a JSON document, sorted.
fn parse(text: &[u8]) -> Maybe {
    let value: Value = serde_json::from_slice(text)?;
    let mut strings = Vec::new();
    gather(value, &mut strings);
    strings.sort_unstable();
    Ok(Some(Document { strings }))
}

fn gather(value: Value, strings: &mut Vec<String>) {
    match value {
        Value::String(string) => strings.push(string),
        Value::Array(values) => values.into_iter().for_each(|value| gather(value, strings)),
        Value::Object(fields) => fields.into_iter().for_each(|(name, value)| {
            strings.push(name);
            gather(value, strings);
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A document of records with words that are made up, each document with some of its own.
fn make(seed: u64) -> Vec<u8> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut word = move |kinds: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        format!("w{:x}", random % kinds)
    };
    let records: Vec<Value> = (0..RECORDS)
        .map(|number| {
            let text: Vec<String> = (0..12).map(|_| word(20_000)).collect();
            serde_json::json!({
                "id": format!("{seed}-{number}"),
                "name": word(500),
                "tags": [word(100), word(100)],
                "text": text.join(" "),
            })
        })
        .collect();
    serde_json::to_vec(&records).expect("it is plain data")
}
