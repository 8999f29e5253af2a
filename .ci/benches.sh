#!/usr/bin/env bash
# Every benchmark in its quick mode, so that none rots.
set -euo pipefail
# That is for whoever uses a profiler, and takes a minute to make.
export CARGO_PROFILE_BENCH_DEBUG=false CARGO_PROFILE_RELEASE_DEBUG=false
cargo bench --benches -- --quick

# The rivals' C and C++ need make and compilers.
if ! { command -v make && command -v cc && command -v c++; } > /dev/null; then
    apt-get update -q && apt-get install -qy make gcc g++
fi
cd benches/allocators
cargo fmt --check
cargo clippy --locked --release -- -D warnings
for bench in throughput programs; do
    cargo run --release --bin "$bench" -- --quick
done
