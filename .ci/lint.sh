#!/usr/bin/env bash
# Format and lints, with all features and with none.
set -euo pipefail
cargo fmt --check
cargo fmt --check --manifest-path examples/wasm/Cargo.toml
cargo clippy --all-targets --all-features -- -D warnings
cargo clippy --all-targets --no-default-features -- -D warnings

# The longest file that is still one idea.
long=$(find src tests benches examples fuzz/fuzz_targets -name target -prune -o -name '*.rs' -exec wc -l {} + | awk '$2 != "total" && $1 > 500')
if [ -n "$long" ]; then
    echo "files of more than 500 lines:" "$long"
    exit 1
fi
