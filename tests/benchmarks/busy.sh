#!/usr/bin/env bash
# A busy machine, on purpose: N loops (6) that want a core each, for at most SECONDS (1800). Ctrl-C ends them before.
#   tests/benchmarks/busy.sh [N] [SECONDS] & make test; kill %1
set -euo pipefail
n=${1:-6}
seconds=${2:-1800}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for ((i = 0; i < n; i++)); do
    timeout "$seconds" bash -c 'while :; do :; done' &
done
wait || true
