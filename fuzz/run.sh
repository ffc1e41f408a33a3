#!/usr/bin/env bash
# Fuzzes every target for SECONDS (default 10) each, starting from the committed seeds (made by hand) and
# corpus (found), then checks that the fuzzer finds a bug that was put in on purpose. Needs stable Rust
# and a C++ compiler. Exit code 0: no target failed, and every canary was found.
#
#   fuzz/run.sh [SECONDS]            runs, and forgets what it finds, unless it is a failure: that is kept in fuzz/artifacts
#   fuzz/run.sh [SECONDS] --grow     also adds inputs that reach something new to the committed corpus, as few as will do
#   fuzz/run.sh --build              builds the targets and no more
set -uo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
mode=${*: -1} seconds=${1:-10}
targets=(ring vnet gate service filters dns nat tcp fragments)
host=$(rustc -vV | sed -n 's/^host: //p')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Coverage as libFuzzer wants it. Only `-Z sanitizer` needs nightly; the pass itself does not. With `--target`, build scripts and
# macros are not instrumented.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing"

# `fuzz TARGET OPTIONS-AND-FOLDERS...`: the target's own output goes to $work/TARGET.log.
fuzz() {
    local target=$1
    shift
    "target/$host/release/$target" -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
        "-artifact_prefix=$PWD/artifacts/$target-" "$@" >"$work/$target.log" 2>&1
}

# `number TARGET WORDS`: the last number after these words in its output.
number() { grep -o "$2 *[0-9]*" "$work/$1.log" | tail -1 | grep -o '[0-9]*$'; }

run() {
    local target=$1
    mkdir -p "$work/$target" "corpus/$target"
    if ! fuzz "$target" "-max_total_time=$seconds" "$work/$target" "corpus/$target" "seeds/$target"; then
        echo "$target FAILED"
        tail -40 "$work/$target.log"
        return 1
    fi
    printf '%-9s %8s executions  %6s edges  %4s inputs in the corpus  seed %s\n' "$target" \
        "$(number "$target" 'stat::number_of_executed_units:')" "$(number "$target" 'cov:')" \
        "$(find "corpus/$target" -type f | wc -l)" "$(number "$target" 'Seed:')"
    [[ $mode == --grow ]] || return 0
    mkdir "$work/$target-merged"
    fuzz "$target" -merge=1 "$work/$target-merged" "corpus/$target" "$work/$target" ||
        { tail "$work/$target.log"; return 1; }
    rm -rf "corpus/$target"
    mv "$work/$target-merged" "corpus/$target"
}

find_canary() {
    local target=$1
    mkdir -p "$work/$target-canary"
    # From nothing: what matters is that the fuzzer climbs from byte to byte.
    if FUZZ_CANARY=1 fuzz "$target" "-max_total_time=$seconds" -max_len=16 \
        "-artifact_prefix=$work/$target-canary/" "$work/$target-canary"; then
        echo "$target did not find the canary"
        return 1
    elif ! grep -q 'the canary' "$work/$target.log"; then
        echo "$target failed, but not by the canary"
        tail -40 "$work/$target.log"
        return 1
    fi
    echo "$target found the canary after $(number "$target" 'stat::number_of_executed_units:') executions"
}

# `each FUNCTION`: for all targets, one on each processor at a time. What they say comes in order.
each() {
    local target running=0
    for target in "${targets[@]}"; do
        ((running < $(nproc))) || { wait -n; running=$((running - 1)); }
        { "$1" "$target" || touch "$work/failed"; } >"$work/$target.said" 2>&1 &
        running=$((running + 1))
    done
    wait
    for target in "${targets[@]}"; do cat "$work/$target.said"; done
}

mkdir -p artifacts
cargo build --quiet --locked --release --target "$host" || exit 1
[[ $mode != --build ]] || exit 0
each run
# A bug on purpose in every target.
each find_canary
[[ ! -e $work/failed ]]
