//! `UFFDIO.md` has a row for each constant of `lacuna::uffd`, and what its rows name exists.

#![allow(missing_docs, reason = "a test")]

use lacuna::uffd::{
    ContinueMode, CopyMode, Features, Ioctls, MoveMode, PagefaultFlags, PoisonMode, RegisterMode,
    WriteProtectMode, ZeropageMode,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

const TABLE: &str = include_str!("../UFFDIO.md");

/// Each constant is an alias in the documentation of what stands for it.
const SOURCES: [&str; 6] = [
    include_str!("../src/uffd/event.rs"),
    include_str!("../src/uffd/features.rs"),
    include_str!("../src/uffd/install.rs"),
    include_str!("../src/uffd/modes.rs"),
    include_str!("../src/uffd/open.rs"),
    include_str!("../src/uffd/register.rs"),
];

/// The rows, by the constant that they are of: since when, where, what for, tests.
fn rows() -> BTreeMap<&'static str, [&'static str; 4]> {
    let mut rows = BTreeMap::new();
    for line in TABLE.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, rest @ ..] = cells.as_slice() else { panic!("{line}") };
        let rest = rest.try_into().unwrap_or_else(|_| panic!("five columns: {line}"));
        let before = rows.insert(name.trim_matches('`'), rest);
        assert!(before.is_none(), "two rows of {name}");
    }
    rows
}

/// What stands in backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The constants that the module says it has.
fn constants() -> BTreeSet<&'static str> {
    let aliases = SOURCES
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.trim().strip_prefix("#[doc(alias"));
    let names = aliases.flat_map(|alias| alias.split('"').skip(1).step_by(2));
    names.filter(|name| name.starts_with("UFFD") || name.starts_with("USERFAULTFD_")).collect()
}

#[test]
fn every_constant_has_a_row_and_every_row_a_constant() {
    let rows: BTreeSet<_> = rows().into_keys().collect();
    let constants = constants();
    let missing: Vec<_> = constants.difference(&rows).collect();
    assert!(missing.is_empty(), "without a row: {missing:?}");
    let unknown: Vec<_> = rows.difference(&constants).collect();
    assert!(unknown.is_empty(), "rows of nothing: {unknown:?}");
}

/// The same, from the types themselves.
#[test]
fn every_flag_has_a_row() {
    let rows = rows();
    macro_rules! check {
        ($($flags:ty: $prefix:literal,)*) => {$(
            for (name, _) in <$flags>::all().iter_names() {
                let name = format!("{}{name}", $prefix);
                assert!(rows.contains_key(name.as_str()), "no row of {name}");
            }
        )*};
    }
    check! {
        Features: "UFFD_FEATURE_", Ioctls: "UFFDIO_", PagefaultFlags: "UFFD_PAGEFAULT_FLAG_",
        RegisterMode: "UFFDIO_REGISTER_MODE_", CopyMode: "UFFDIO_COPY_MODE_",
        ZeropageMode: "UFFDIO_ZEROPAGE_MODE_", WriteProtectMode: "UFFDIO_WRITEPROTECT_MODE_",
        ContinueMode: "UFFDIO_CONTINUE_MODE_", PoisonMode: "UFFDIO_POISON_MODE_",
        MoveMode: "UFFDIO_MOVE_MODE_",
    }
}

#[test]
fn what_the_rows_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if std::fs::read(root.join("Cargo.toml")).is_err() {
        // Past the harness, which captures what is printed.
        std::io::stderr().write_all(b"NOT RUN: the sources cannot be read from here\n").unwrap();
        return;
    }
    for (name, [since, used, purpose, tests]) in rows() {
        assert!(since.split_once('.').is_some_and(|(major, _)| major.parse::<u32>().is_ok()));
        assert!(!purpose.is_empty(), "{name}: what for?");
        assert!(quoted(used).count() > 0, "{name}: where?");
        assert!(quoted(tests).count() > 0, "{name}: no test");
        for path in quoted(used) {
            assert!(root.join(path).is_file(), "{name}: there is no {path}");
        }
        for test in quoted(tests) {
            let (file, function) = test.split_once("::").unwrap_or((test, ""));
            let path = root.join("tests").join(file).with_extension("rs");
            let source = std::fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{name}: {}: {error}", path.display()));
            let wanted = format!("fn {function}(");
            assert!(function.is_empty() || source.contains(&wanted), "{name}: there is no {test}");
        }
    }
}
