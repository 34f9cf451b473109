#!/usr/bin/env bash
# A study in a SLURM allocation: one Ray node per SLURM node, the driver on the first.
#
#   sbatch --nodes 4 --gpus-per-node 4 --time 24:00:00 clusters/slurm.sh breakhis data/breakhis /shared/studies/breakhis
#
# When the time is up, submit it again: the study goes on. Ask for `--signal=B:INT@120` to stop at an epoch's end.
#SBATCH --job-name=kdtvit
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
set -euo pipefail
space=$1 data=$2 out=$3
port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --node-ip-address "$address" --port "$port" --block &
until ray status --address "$address:$port" >/dev/null 2>&1; do sleep 2; done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --exclude "$head" \
        ray start --address "$address:$port" --block &
fi

# --takeover: an earlier job of this study ran on another host and is over
kdtvit-ray sweep "$space" --data "$data" --out "$out" --address "$address:$port" --takeover &
driver=$!
trap 'kill -INT $driver' INT
wait "$driver" || wait "$driver"
