#!/bin/bash
# sbatch slurm.sh jobs.yaml
#
# Eight tasks share the manifest, all on one shared directory: task i does every eighth job, from the
# i-th. A task that is requeued goes on where it was.
#SBATCH --job-name=compressor
#SBATCH --array=0-7
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --output=compressor-%A-%a.log
set -eu
# exec: the signal above goes to this process, which then is compressor.
exec compressor batch "${1:-jobs.yaml}" --out runs --shard auto --workers 1 --log-format json
