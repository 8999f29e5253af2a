#!/usr/bin/env bash
# The test suites of well-known crates, as published, with lacuna as the global allocator: as debug
# builds, in which lacuna checks what is freed, and as release builds. Fails if a test does, or if a
# binary with tests did without lacuna.
#
#     bash benches/allocators/suites.sh                # minutes
#     bash benches/allocators/suites.sh hashbrown@0.17
set -euo pipefail
cd "$(dirname "$0")"
lacuna=$(cd ../.. && pwd)
suites=("$@")
[[ $# -gt 0 ]] || suites=(hashbrown@0.17 serde_json@1 itertools@0.13 rayon-core@1)

work=$(realpath -m "${CARGO_TARGET_DIR:-target}")/suites
rm -rf "$work/sources" "$work/inject"
export CARGO_TARGET_DIR=$work/target LACUNA_STATS=1

# The sources of the latest versions, with those of whatever they depend on.
mkdir -p "$work/sources/src" "$work/inject/src"
touch "$work/sources/src/lib.rs"
(
    cd "$work/sources"
    printf '[package]\nname = "sources"\nedition = "2024"\n[workspace]\n' > Cargo.toml
    cargo add --quiet "${suites[@]}"
    cargo vendor --quiet --versioned-dirs vendor > /dev/null
)

cat > "$work/inject/Cargo.toml" << END
[package]
name = "inject"
edition = "2024"
[dependencies]
lacuna = { path = "$lacuna" }
END
cat > "$work/inject/src/lib.rs" << END
#[global_allocator]
static GLOBAL: lacuna::Lacuna = lacuna::Lacuna::new();
END

bad=0
for suite in "${suites[@]}"; do
    source=$(echo "$work/sources/vendor/${suite/@/-}".*)
    (
        cd "$source"
        printf '\n[workspace]\n[dev-dependencies.inject]\npath = "%s"\n' "$work/inject" >> Cargo.toml
        # An unused dependency is not linked.
        for file in tests/*.rs; do echo 'extern crate inject as _;' >> "$file"; done
        printf '#[cfg(test)]\nextern crate inject as _;\n' >> src/lib.rs
    )
    for profile in dev release; do
        log=$work/${suite%@*}.$profile.log
        status=ok
        (cd "$source" && cargo test --tests --no-fail-fast --profile "$profile") > "$log" 2>&1 || status=FAILED
        passed=$(awk '/^test result:/ { sum += $4 } END { print sum + 0 }' "$log")
        failed=$(awk '/^test result:/ { sum += $6 } END { print sum + 0 }' "$log")
        binaries=$(grep -c '^test result: .* [1-9][0-9]* passed' "$log" || true)
        heaps=$(grep -c 'lacuna: heap "global":' "$log" || true)
        ((binaries > 0 && heaps >= binaries)) || status="FAILED: $heaps binaries used lacuna"
        [[ $status == ok ]] || bad=1
        echo "$(basename "$source"), $profile: $passed passed, $failed failed, $binaries binaries: $status"
    done
done
((bad == 0)) || { echo "what they said is in $work/*.log" >&2; exit 1; }
