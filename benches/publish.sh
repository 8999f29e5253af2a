#!/usr/bin/env bash
# Runs every benchmark in full, half an hour on a quiet machine, and writes BENCHMARKS.md and its
# picture from what they measured.
set -euo pipefail
cd "$(dirname "$0")/.."
tables=$(mktemp -d)
trap 'rm -rf "$tables"' EXIT

cargo bench --no-run
for bench in first_touch scattered discard growth arenas; do
    LACUNA_BENCH_MD="$tables/$bench.md" LACUNA_BENCH_SVG="$tables/$bench.svg" \
        cargo bench --bench "$bench"
done
cp "$tables/first_touch.svg" benches/first_touch.svg
for bench in throughput programs; do
    (cd benches/allocators && cargo run --release --bin "$bench") > "$tables/$bench.md"
done

{
    cat benches/BENCHMARKS.head.md
    echo "Measured on $(date -u +%F): Linux $(uname -r), $(nproc) processors of a virtual machine" \
        "($(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)), transparent huge pages" \
        "\`$(grep -o '\[.*\]' /sys/kernel/mm/transparent_hugepage/enabled | tr -d '[]')\`," \
        "$(rustc --version | cut -d' ' -f1-2)."
    for bench in first_touch scattered discard growth arenas; do
        printf '\n## `cargo bench --bench %s`\n\n' "$bench"
        cat "$tables/$bench.md"
    done
    for bench in throughput programs; do
        printf '\n## `cd benches/allocators; cargo run --release --bin %s`\n\n```text' "$bench"
        cat "$tables/$bench.md"
        printf '```\n'
    done
} > BENCHMARKS.md
