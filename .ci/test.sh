#!/usr/bin/env bash
# The README's test command, and the tests that mean something else when optimised. No test may be
# ignored, and none may say that it did not test anything. What only an administrator can grant (huge pages,
# swap) says NOT RUN where it is not granted: that is told, and no failure.
set -euo pipefail
log=$(mktemp)
trap 'rm -f "$log"' EXIT

check() {
    "$@" 2>&1 | tee "$log"
    if grep -E 'NOT TESTED|test result: .* [1-9][0-9]* ignored' "$log"; then
        echo "a test did not run"
        exit 1
    fi
    grep 'NOT RUN' "$log" | sort -u || true
}

# The soak takes 20 seconds where nobody says otherwise.
export LACUNA_SOAK_SECONDS=40
check cargo test -- --nocapture
check cargo test --all-features --test heap_collections
check cargo test --release --test heap --test heap_model --test global_allocator
check cargo test --release --test stack --test lending --test huge_pages --test contention

echo "-- without userfaultfd"
# The tests that name the backend of their arenas, or have none, would say the same again.
same='checkpoint|checkpoint_beside|checkpoint_dropped|checkpoint_model|first_chance|hugetlb|limits|loom|seam|shared_memory|uffd_.*'
names=$(for path in tests/*.rs; do basename "$path" .rs; done
    for path in tests/*/main.rs; do basename "$(dirname "$path")"; done)
mapfile -t again < <(grep -vxE "$same" <<< "$names")
LACUNA_SOAK_SECONDS=10 LACUNA_FORKS=200 LACUNA_KILLS=40 LACUNA_CHURN=5000 LACUNA_BACKEND=mprotect \
    check cargo test --lib "${again[@]/#/--test=}" -- --nocapture

echo "-- with each system call failing: see src/sys/seam.rs"
RUSTFLAGS="--cfg lacuna_seam" CARGO_TARGET_DIR=target/seam check cargo test --test seam -- --nocapture

echo "-- with the tuning constants shrunk: see src/fault/tuning.rs"
LACUNA_SOAK_SECONDS=10 LACUNA_CHURN=5000 \
    RUSTFLAGS="--cfg lacuna_shrunk" CARGO_TARGET_DIR=target/shrunk check cargo test \
    --test accounting --test address_space --test arena --test coexist --test contention \
    --test churn --test fork --test fork_policies --test fork_unhooked --test huge_pages \
    --test lending --test races --test record --test traces --test reset --test security --test soak --test sparse_array \
    --test violation \
    -- --test-threads=1
