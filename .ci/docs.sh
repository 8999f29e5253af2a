#!/usr/bin/env bash
# The documentation, with warnings denied, and the files that the documents name.
set -euo pipefail
RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
missing=0
for path in $(grep -ohE '`(src|tests|benches|examples)/[A-Za-z0-9_/.-]+`' ./*.md | tr -d '`' | sort -u); do
    [ -e "$path" ] || { echo "a document names $path, which is not there"; missing=1; }
done
exit $missing
