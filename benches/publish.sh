#!/usr/bin/env bash
# Measures, and writes BENCHMARKS.md and its picture from what was measured: all benchmarks, which takes
# half an hour on a quiet machine, or those that are named.
#
#   bash benches/publish.sh [first_touch] [scattered] [discard] [rollback] [pool] [image] [growth] [arenas] [throughput] [programs]
set -euo pipefail
cd "$(dirname "$0")/.."
published=benches/published
all="first_touch scattered discard rollback pool image growth arenas throughput programs"

# What a benchmark prints, under its command and what it ran on.
publish() {
    local name=$1 command=$2 table=$3
    {
        printf '## `%s`\n\n' "$command"
        echo "Measured on $(date -u +%F): Linux $(uname -r), $(nproc) processors of a virtual machine" \
            "($(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs)), transparent huge pages" \
            "\`$(grep -o '\[.*\]' /sys/kernel/mm/transparent_hugepage/enabled | tr -d '[]')\`," \
            "$(rustc --version | cut -d' ' -f1-2)."
        echo
        cat "$table"
    } > "$published/$name.md"
}

cargo bench --no-run
table=$(mktemp)
trap 'rm -f "$table" "$table.out"' EXIT
for bench in ${*:-$all}; do
    case $bench in
        throughput | programs)
            (cd benches/allocators && cargo run --release --bin "$bench") > "$table.out"
            { echo '```text'; cat "$table.out"; echo '```'; } > "$table"
            publish "$bench" "cd benches/allocators; cargo run --release --bin $bench" "$table"
            ;;
        *)
            LACUNA_BENCH_MD=$table LACUNA_BENCH_SVG=$table.svg cargo bench --bench "$bench"
            publish "$bench" "cargo bench --bench $bench" "$table"
            if [ "$bench" = first_touch ]; then cp "$table.svg" benches/first_touch.svg; fi
            rm -f "$table.svg"
            ;;
    esac
done

{
    cat benches/BENCHMARKS.head.md
    for bench in $all; do
        echo
        cat "$published/$bench.md"
    done
} > BENCHMARKS.md
