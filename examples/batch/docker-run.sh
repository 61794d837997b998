#!/bin/sh
# One machine: the jobs of $PWD/jobs.yaml, results in $PWD/runs. Call it again to go on after a stop.
# The root file system is read-only, there is no network, and whoever calls this owns the results.
set -eu
docker run --rm --init \
  --read-only --tmpfs /tmp --network none --cap-drop ALL --security-opt no-new-privileges \
  --user "$(id -u):$(id -g)" --stop-timeout 15 \
  --volume "$PWD:/work" --volume compressor-cache:/cache \
  "${IMAGE:-compressor}" \
  batch jobs.yaml --out runs --workers "${WORKERS:-2}" --resume --log-format json
