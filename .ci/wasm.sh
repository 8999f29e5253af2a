#!/usr/bin/env bash
# The example that runs WebAssembly on a pool. Not part of `run`: the engine has a compiler in it, which
# takes minutes to build.
set -euo pipefail
cd "$(dirname "$0")/../examples/wasm"
# As `cargo clippy`, but with what was built of the engine: that checks each crate of it once more.
RUSTC_WORKSPACE_WRAPPER=clippy-driver cargo rustc --release --locked -- -D warnings
cargo run --quiet --release --locked -- --quick
LACUNA_BACKEND=mprotect cargo run --quiet --release --locked -- --quick | grep 'all answers right'
