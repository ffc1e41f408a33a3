#!/usr/bin/env bash
# Counts the instructions that the worker spends on a frame of 64 bytes, and fails if they have become more.
#
#   benches/instructions.sh
#
# valgrind's callgrind counts what `benches/instructions.rs` does: bursts of 32 frames from one guest to another in one
# thread, checks, learning, lookup and counters included. Only the worker's turns are counted, not the guests' drivers,
# and not its looks at epoll, of which there is one in 16 bursts. Two runs of different length are subtracted, so that
# what comes before the first burst does not count. The count is the same on every machine with the same compiler.
#
# `benches/instructions.max` has the number that may not be exceeded. It may fall; to let it rise takes a line in the
# change log that says why.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
frames_in_burst=32 few=500 many=1500

command -v valgrind >/dev/null || { echo "valgrind is missing: tests/lab/prepare.sh tests installs it" >&2; exit 1; }
program=$(cargo bench --locked --bench instructions --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*\/instructions-[^"]*\)".*/\1/p')
[[ -x $program ]] || { echo "the benchmark was not built" >&2; exit 1; }

counted() {
    BURSTS=$1 valgrind --tool=callgrind --callgrind-out-file=/dev/null \
        --toggle-collect='guestwire::worker::Worker::turn' --toggle-collect='guestwire::worker::Worker::wait' \
        "$program" 2>&1 | sed -n 's/.*Collected : \([0-9]*\)$/\1/p'
}

of_few=$(counted $few)
of_many=$(counted $many)
max=$(<benches/instructions.max)
awk -v total="$((of_many - of_few))" -v frames="$(((many - few) * frames_in_burst))" -v max="$max" 'BEGIN {
    each = total / frames
    printf "instructions for each frame of 64 bytes: %.1f (at most %d)\n", each, max
    if (each < 50) { print "that is too few to be true: is the worker still counted?"; exit 1 }
    if (each > max) { print "more than before: see the top of benches/instructions.sh"; exit 1 }
    if (each < max - 2) printf "fewer than before: write %d into benches/instructions.max\n", each + 1
}'
