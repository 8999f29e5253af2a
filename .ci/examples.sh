#!/usr/bin/env bash
# The examples, on real input and on bad input.
set -euo pipefail
cargo build --release --examples
ngrams=target/release/examples/ngrams

echo "-- our own sources, against a hash map"
"$ngrams" --hashmap src/*.rs src/*/*.rs tests/*.rs | tail -4
echo "-- standard input"
cat src/*/*.rs | "$ngrams" --hashmap - | tail -1
echo "-- no input: its own executable"
"$ngrams" < /dev/null | tail -3
echo "-- plain mmap says the same"
diff <("$ngrams" src/*.rs | head -20) <("$ngrams" --mmap src/*.rs | head -20)
echo "-- a budget that is large enough"
"$ngrams" --budget 1G Cargo.toml | tail -2

echo "-- the global allocator, in a budget and without"
job=target/release/examples/global_allocator
"$job" | grep '24 indexed, 0 did not fit'
"$job" --budget 48M | grep -E '[1-9][0-9]* indexed, [1-9][0-9]* did not fit'
"$job" --budget 1M | grep '0 indexed, 24 did not fit'
"$job" README.md CHANGELOG.md | grep '2 indexed'
LACUNA_STATS=1 "$job" README.md 2>&1 > /dev/null | grep 'heap "global"'

echo "-- coroutines on stacks in an arena"
target/release/examples/coroutines | grep 'all of them have returned'

echo "-- a pool of small machines"
target/release/examples/instance_pool | grep '1000 requests by 2 threads .* no marks of others'

echo "-- an image that is started warm"
target/release/examples/warm_start --quick | grep 'all starts gave the same answers'

said=$(mktemp)
trap 'rm -f "$said"' EXIT

fails() {
    if "$@" > /dev/null 2> "$said"; then
        echo "this should have failed: $*"
        exit 1
    fi
    grep '^ngrams: ' "$said"
}
echo "-- bad input"
fails "$ngrams" no/such/file
fails "$ngrams" src
fails "$ngrams" --budget 64K README.md
fails "$ngrams" --budget much README.md
fails "$ngrams" --budget 1 README.md
fails "$ngrams" --no-such-option
fails "$ngrams" --mmap --budget 1G README.md
