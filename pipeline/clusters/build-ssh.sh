#!/bin/bash
# Builds a cache on machines that ssh reaches: build-ssh.sh HOST ...
# Each has this folder and this environment under the same paths, and WORKERS GPUs.
set -euo pipefail

scheduler=tcp://${ADDRESS:-$(hostname)}:${PORT:-8786}
dask=$(command -v dask)
trap 'kill $(jobs -p)' EXIT

dask scheduler --port "${PORT:-8786}" --no-dashboard &
for host in "$@"; do
  # A worker ends by itself when it has lost the scheduler.
  ssh "$host" "cd '$PWD' && '$dask' worker $scheduler --no-dashboard \
    --nworkers ${WORKERS:-8} --nthreads 2 --death-timeout 60" &
done
repa-cache build --scheduler "$scheduler"
