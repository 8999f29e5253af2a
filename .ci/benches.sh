#!/usr/bin/env bash
# Every benchmark in its quick mode, so that none rots.
set -euo pipefail
cargo bench --benches -- --quick
