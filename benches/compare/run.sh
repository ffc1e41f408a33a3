#!/usr/bin/env bash
# guestwire beside the programs that people would use otherwise.
#
#   benches/compare/run.sh [--help] [LOAD...] [--pairs N] [--seconds N] [...]
#
# LOAD is packets, packed, guests, qemu, lan, nat, network, hostile, idle, growth, workers, receivers, or report,
# which measures nothing.
# Sets the peers up (`tests/lab/prepare.sh bench`), builds guestwire as it is shipped, and runs pairs in turn: guestwire,
# peer, peer, guestwire. What comes out is in `benches/runs/DATE-COMMIT`. It needs root, for network namespaces and for
# the huge pages that DPDK wants, two processors, and hours if everything is asked for.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
for word in "$@"; do
    [[ $word == -h || $word == --help || $word == report ]] && exec cargo bench --quiet --locked --bench compare -- "$@"
done
((EUID == 0)) || { echo "benches/compare/run.sh needs root" >&2; exit 1; }
tests/lab/prepare.sh --yes bench
cargo bench --locked --bench compare -- "$@"
