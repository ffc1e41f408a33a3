#!/usr/bin/env bash
# Fuzzes every target for SECONDS (default 10) each, starting from the committed seeds (made by hand) and
# corpus (found), then checks that the fuzzer finds a bug that was put in on purpose. Needs stable Rust
# and a C++ compiler. Exit code 0: no target failed, and every canary was found.
#
#   fuzz/run.sh [SECONDS]            runs, and forgets what it finds, unless it is a failure: that is kept in fuzz/artifacts
#   fuzz/run.sh [SECONDS] --grow     also adds inputs that reach something new to the committed corpus, as few as will do
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
seconds=${1:-10} grow=${2:-}
targets=(ring vnet gate service filters)
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Coverage as libFuzzer wants it. Only `-Z sanitizer` needs nightly; the pass itself does not. With `--target`, build scripts and
# macros are not instrumented.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

# `fuzz TARGET OUTPUT-FOLDER OPTIONS... -- CORPUS...`: the target's own output goes to $work/log.
fuzz() {
    local target=$1
    shift
    "target/$host/release/$target" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        "-artifact_prefix=$PWD/artifacts/$target-" "$@" >"$work/log" 2>&1
}

number() { grep -o "$1 *[0-9]*" "$work/log" | tail -1 | grep -o '[0-9]*$'; }

failed=0
mkdir -p artifacts
cargo build --quiet --locked --release --target "$host" || exit 1
for target in "${targets[@]}"; do
    mkdir -p "$work/$target" "corpus/$target"
    if fuzz "$target" "-max_total_time=$seconds" "$work/$target" "corpus/$target" "seeds/$target"; then
        printf '%-7s %8s executions  %6s edges  %4s inputs in the corpus  seed %s\n' "$target" \
            "$(number 'stat::number_of_executed_units:')" "$(number 'cov:')" "$(find "corpus/$target" -type f | wc -l)" \
            "$(number 'Seed:')"
    else
        echo "$target FAILED"
        tail -40 "$work/log"
        failed=1
    fi
    if [[ $grow == --grow ]]; then
        mkdir "$work/$target-merged"
        fuzz "$target" -merge=1 "$work/$target-merged" "corpus/$target" "$work/$target" || { tail "$work/log"; failed=1; }
        rm -rf "corpus/$target"
        mv "$work/$target-merged" "corpus/$target"
    fi
done

# A bug on purpose in every target.
export FUZZ_CANARY=1
for target in "${targets[@]}"; do
    mkdir -p "$work/canary"
    # From nothing: what matters is that the fuzzer climbs from byte to byte.
    if fuzz "$target" "-max_total_time=$seconds" -max_len=16 "-artifact_prefix=$work/canary/" "$work/canary"; then
        echo "$target did not find the canary" && failed=1
    elif ! grep -q 'the canary' "$work/log"; then
        echo "$target failed, but not by the canary" && tail -40 "$work/log" && failed=1
    else
        echo "$target found the canary after $(number 'stat::number_of_executed_units:') executions"
    fi
    rm -rf "$work/canary"
done
exit "$failed"
