#!/usr/bin/env bash
# The fuzz targets: format, lints, and each for a short time.
set -euo pipefail
if ! command -v c++ > /dev/null; then
    apt-get update -q && apt-get install -qy g++
fi
cd fuzz
cargo fmt --check
cargo clippy --locked --release -- -D warnings
cargo build --locked --release
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
for target in heap arena builder; do
    echo "-- $target"
    mkdir "$room/$target"
    if ! cargo run --quiet --release --bin "$target" -- "$room/$target" -artifact_prefix="$room/" \
        -max_total_time=20 -max_len=800 -len_control=0 -timeout=20 -rss_limit_mb=2048 2> "$room/log"; then
        tail -60 "$room/log"
        for input in "$room"/crash-* "$room"/timeout-* "$room"/oom-*; do
            [ ! -e "$input" ] || { echo "the input, in base64:"; base64 "$input"; }
        done
        exit 1
    fi
    # Without coverage it would be a blind search, and nobody would notice.
    grep -E 'INITED|DONE' "$room/log" | cut -c1-100
    begin=$(sed -n 's/.*INITED cov: \([0-9]*\).*/\1/p' "$room/log")
    end=$(sed -n 's/.*DONE *cov: \([0-9]*\).*/\1/p' "$room/log")
    [ "$end" -gt "$((begin + 200))" ] || { echo "coverage did not grow"; exit 1; }
done
