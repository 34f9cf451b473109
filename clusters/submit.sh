#!/usr/bin/env bash
# A study as a job of a Ray cluster that runs already (kuberay/raycluster.yaml, ray_up/, ssh.sh): `ray job submit`.
#
# Gives     a driver that runs on the cluster's head and outlives your laptop, and is started again if it dies.
# Edit      nothing; options of `kdtvit-ray sweep` follow STUDY. The cluster's environment must hold this package and
#           ray[default]: pip install -c .ci/pins.txt '.[cluster]', which this machine needs too.
# Launch    export RAY_ADDRESS=http://HEAD:8265           # or a tunnel to it: ssh -L 8265:localhost:8265 HEAD
#           export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=... # where the cluster asks for a token
#           clusters/submit.sh breakhis s3://BUCKET/prepared/breakhis s3://BUCKET/studies/breakhis --groups 8
# Watch     ray job logs --follow ID, ray job status ID; kdtvit-ray status STUDY
# Resume    the same command: a job of its own, the same study
# End       ray job stop ID stops at the end of the epoch, after 5 minutes at once
#
# With an autoscaler say --groups N and --gpus-per-worker 1: its nodes come when groups wait for them.
# `ray job stop` of a study's job must not be read as a loss: the same command goes on.
#
# Tried: submission to a Ray of this machine, with token authentication, to the end of a study and to a stop; not over
# a network, not GPUs.
set -euo pipefail
fail() { echo "submit.sh: $*" >&2; exit 2; }
[ $# -ge 3 ] || fail "expected SPACE DATA STUDY; found $# arguments"
[ -n "${RAY_ADDRESS:-}" ] || fail "RAY_ADDRESS is not set; allowed: http://HEAD:8265"
space=$1 data=$2 out=$3
shift 3
places=("$data" "$out") options=("$@")
for i in "${!options[@]}"; do
    case ${options[i]} in
        --stages) places+=("${options[i + 1]:-}") ;;
        --stages=*) places+=("${options[i]#*=}") ;;
    esac
done
for place in "${places[@]}"; do # the job runs in a folder of Ray's
    case $place in /* | *://*) ;; *) fail "'$place' is relative; allowed: a path from / on that the head sees, or a URI" ;; esac
done
case $space in *.toml) case $space in /*) ;; *) fail "'$space' is relative; allowed: a shipped space, or a path from /" ;; esac ;; esac

exec ray job submit --no-wait --working-dir "$(dirname "$0")" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_SIGNAL": "SIGINT", "RAY_JOB_STOP_WAIT_TIME_S": "300"}}' \
    -- bash until_final.sh kdtvit-ray sweep "$space" --data "$data" --out "$out" --address auto --takeover "$@"
