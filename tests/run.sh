#!/usr/bin/env bash
# Everything that must hold before a change is taken. Exit code 0 means that all of it did.
#
# Installs what the tests need, then checks the format and the lints and runs the unit and property tests, the tests of
# the whole with a driver in process, the tests with real guests, and the fuzz targets for a moment. A step that fails
# does not keep the later ones from running. It needs no terminal and no input.
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
output=$(mktemp) builds=$(mktemp) builder=
trap 'rm -f "$output" "$builds"; [[ -z $builder ]] || kill -- "-$builder" 2>/dev/null' EXIT
steps=() failed_steps=0
# The tests in process wait half of the time.
at_once=(--test-threads "$((2 * $(nproc)))")

# `step NAME COMMAND...` runs one step, showing its output and keeping it.
step() {
    local name=$1 begin=$SECONDS verdict=ok
    shift
    printf '\n=== %s\n' "$name"
    if ! "$@" </dev/null 2>&1 | tee -a "$output"; then
        verdict=FAILED
        failed_steps=$((failed_steps + 1))
    fi
    steps+=("$(printf '%-8s %4d s  %s' "$verdict" "$((SECONDS - begin))" "$name")")
}

# The names of the integration tests, as cargo finds them.
integration_tests() {
    cargo metadata --format-version 1 --no-deps | grep -o '"kind":\["test"\][^}]*"name":"[^"]*"' | sed 's/.*"name":"\([^"]*\)"/\1/'
}

everything_but_guests() {
    local options=() name
    while read -r name; do
        [[ $name == guests ]] || options+=(--test "$name")
    done < <(integration_tests)
    ((${#options[@]})) || return 0
    cargo test --locked --no-fail-fast "${options[@]}" -- "${at_once[@]}"
}

# What the last steps need is built beside the real guests, which wait now and then, of processor time that nobody wants.
# The tests in process measure time, and have the machine to themselves.
build_beside() {
    chrt --idle 0 setsid bash -c 'fuzz/run.sh --build; cargo bench --locked --bench instructions --no-run' \
        </dev/null >"$builds" 2>&1 &
    builder=$!
}

command -v cargo >/dev/null || { echo "cargo is missing; install Rust first" >&2; exit 1; }
step "guests and tools" tests/lab/prepare.sh --yes tests
step "rustfmt" cargo fmt --all --check
step "rustfmt, fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
step "clippy" cargo clippy --locked --all-targets -- -D warnings
step "clippy, fuzz targets" env CARGO_TARGET_DIR="$PWD/target" \
    cargo clippy --manifest-path fuzz/Cargo.toml --locked --all-targets --no-default-features -- -D warnings
step "build" cargo test --locked --no-run
step "unit and property tests" cargo test --locked --no-fail-fast --lib --bins
step "documentation examples" cargo test --locked --doc
step "the whole, with a driver in process" everything_but_guests
# NAT's other way to read what a guest has not acknowledged is tried with it.
step "the same with two workers" env WIRE_WORKERS=2 GUESTWIRE_NO_PEEK_OFFSET=1 \
    cargo test --locked --no-fail-fast --test wire -- "${at_once[@]}"
build_beside
# Tests take turns by themselves (tests/guests/main.rs); one that only waits has given its turn back.
step "real guests" cargo test --locked --no-fail-fast --test guests -- --show-output --test-threads 5
begin=$SECONDS
wait "$builder"
steps+=("$(printf '%-8s %4d s  %s' waited "$((SECONDS - begin))" "what was built beside")")
builder=
cat "$builds"
step "instructions for a frame" benches/instructions.sh
step "fuzz targets, 4 s each" fuzz/run.sh 4

printf '\n'
printf '%s\n' "${steps[@]}" "$(printf '         %4d s  in all' "$SECONDS")"
# Each summary of cargo's: "test result: ok. 12 passed; 0 failed; 1 ignored; ...". A step that is no test counts as one.
awk -v failed_steps="$failed_steps" '
    /^test result:/ { passed += $4; failed += $6 }
    END {
        if (failed < failed_steps) failed = failed_steps
        printf "test result: %s. %d passed; %d failed; 0 ignored; 0 measured; 0 filtered out\n",
            failed ? "FAILED" : "ok", passed, failed
        exit (failed || !passed)
    }' "$output"
