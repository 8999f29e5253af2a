#!/usr/bin/env bash
# The main tests under a sanitizer: bash .ci/sanitize.sh [address] [thread]; address by default.
#
# Not part of `run`: the flags are the nightly compiler's, which RUSTC_BOOTSTRAP=1 makes a stable one take.
# The standard library is the one that comes with the compiler, not instrumented. AddressSanitizer works
# all the same, and finds nothing. ThreadSanitizer does not see what the library synchronises: it reports
# races between a thread and whoever joined it, so only what has two frames of lacuna's at its top means
# anything; and the longer tests take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
export RUSTC_BOOTSTRAP=1
target=$(rustc -vV | sed -n 's/^host: //p')
# Arenas raise SIGBUS, and tests SIGSEGV, on purpose.
export ASAN_OPTIONS="handle_sigbus=0 handle_segv=0 allow_user_segv_handler=1 use_sigaltstack=0 detect_leaks=0 detect_stack_use_after_return=0"
export TSAN_OPTIONS="handle_sigbus=0 handle_segv=0 allow_user_segv_handler=1 use_sigaltstack=0 die_after_fork=0 report_signal_unsafe=0 halt_on_error=0 exitcode=66"
export LACUNA_SOAK_SECONDS=${LACUNA_SOAK_SECONDS:-30}

for name in "${@:-address}"; do
    echo "-- $name"
    RUSTFLAGS="-Zsanitizer=$name -Cunsafe-allow-abi-mismatch=sanitizer -Copt-level=1" \
        CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/sanitize-$name" \
        cargo test --target "$target" --no-fail-fast \
        --test arena --test contention --test heap --test heap_model --test lending --test races \
        --test soak -- --test-threads=1
done
