#!/usr/bin/env bash
# A study in a SLURM allocation: one Ray node per SLURM node, the driver on the first.
#
# Gives     all GPUs and CPUs of the allocation as worker groups; several jobs may share a node: port, temporary folder
#           and access token are the job's own.
# Edit      the #SBATCH lines below (or the same options of sbatch), and how the environment is activated (EDIT).
# Launch    from the folder that holds clusters/, on a shared file system or with s3://... for DATA and STUDY:
#             sbatch clusters/slurm.sh breakhis /shared/data/breakhis /shared/studies/breakhis [options of sweep]
# Watch     kdtvit-ray status /shared/studies/breakhis; the job's output (slurm-JOB.out); STUDY/sweep.log
# Resume    the same sbatch command. Before its time is up the job stops the study at the end of an epoch and puts
#           itself into the queue again; so does one that was preempted, and one whose head node's Ray died.
# End       scancel --batch --signal=TERM JOB stops at the end of the epoch, scancel JOB at once. Nothing is left behind.
#
# Tried: the whole script, run by bash with an srun and a scontrol that start several Ray nodes on one machine; an IPv6
# address as far as a head and a driver that joins it; not SLURM itself, not several machines, not GPUs. Where steps must
# be allowed to share CPUs (srun --overlap), edit `step`.
#
# `ray symmetric-run` of Ray 2.60 is not used: it refuses a node where Ray of another job runs, its `ray stop` ends that
# Ray too, signals for the study do not reach it, and its waits end after 30 s.
#SBATCH --job-name=kdtvit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --no-kill
#SBATCH --open-mode=append
set -euo pipefail
say() { echo "slurm.sh: $*" >&2; }
fail() { say "$*"; exit 2; }

# EDIT: source /shared/venv/bin/activate
[ $# -ge 3 ] || fail "expected SPACE DATA STUDY; found $# arguments"
space=$1 data=$2 out=$3
shift 3
start_seconds=${KDTVIT_START_SECONDS:-300} # for Ray's head to answer
stop_seconds=${KDTVIT_STOP_SECONDS:-300}   # for the study to stop at the end of an epoch; it is ended at once then
most_restarts=${KDTVIT_RESTARTS:-20}       # after a head that died
until_final=${SLURM_SUBMIT_DIR:?"slurm.sh is for sbatch"}/clusters/until_final.sh
[ -f "$until_final" ] || fail "$until_final is missing; submit from the folder that holds clusters/"
command -v kdtvit-ray >/dev/null || fail "kdtvit-ray is not on the PATH; activate its environment at EDIT"
export SLURM_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} RAY_USAGE_STATS_ENABLED=0
export KDTVIT_RAY_TEMP=/tmp/kdtvit-$SLURM_JOB_ID # short: paths of sockets hold 107 characters
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

# Always in a subshell, which becomes srun, so that signals reach it. Since SLURM 22.05 srun does not take --cpus-per-task
# from sbatch. One node that fails must not end the others.
step() { exec srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --no-kill --kill-on-bad-exit=0 "$@"; }

first_address() { # of those that a node's name has, the first IPv4 one that other nodes reach, else the first IPv6 one
    tr ' ' '\n' | awk '/^$/ || /^127\./ || /^::1$/ || /^fe80:/ { next } /:/ { if (!six) six = $1; next }
        { if (!four) four = $1 } END { print four ? four : six }'
}

nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes%%$'\n'*}
on_head=(--nodes=1 --ntasks=1 --nodelist="$head")
address=$(step "${on_head[@]}" hostname --ip-address | first_address)
[ -n "$address" ] || address=$(step "${on_head[@]}" hostname --all-ip-addresses | first_address)
[ -n "$address" ] || fail "node $head has no address that other nodes can reach: hostname shows local ones only"
port=$((20000 + SLURM_JOB_ID % 10000)) # below the ports that systems hand out, above those of Ray's workers
case $address in *:*) joined="[$address]:$port" ;; *) joined="$address:$port" ;; esac

# shellcheck disable=SC2016 # the variables are those of each node
ray_node='exec ray start --block --temp-dir "$KDTVIT_RAY_TEMP" --num-cpus "$SLURM_CPUS_PER_TASK" \
    ${SLURM_GPUS_ON_NODE:+--num-gpus "$SLURM_GPUS_ON_NODE"} --object-store-memory 1000000000 \
    --min-worker-port 0 --max-worker-port 0 --dashboard-agent-listen-port 0 "$@"'

steps=() driver='' again='' time_up=''
end_steps() {
    for step in "${steps[@]}"; do kill -TERM "$step" 2>/dev/null || true; done
    for step in "${steps[@]}"; do
        timeout 30 tail --pid="$step" -f /dev/null || kill -KILL "$step" 2>/dev/null || true
    done
    timeout 60 srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" rm -rf -- "$KDTVIT_RAY_TEMP" || true
    steps=()
}
trap 'code=$?; trap - EXIT; end_steps; exit $code' EXIT

# shellcheck disable=SC2329 # the traps call it
stop_study() {
    again=yes
    [ -n "$driver" ] || exit 130
    kill -TERM "$driver" 2>/dev/null || true
    (sleep "$stop_seconds" && kill -TERM "$driver") >/dev/null 2>&1 &
}
trap 'time_up=yes; say "the time is almost up: the study stops"; stop_study' USR1
trap stop_study TERM

step "${on_head[@]}" bash -c "$ray_node" bash --head --node-ip-address "$address" --port "$port" \
    --include-dashboard false &
steps+=($!)
end=$((SECONDS + start_seconds))
# shellcheck disable=SC2016
until timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$address" "$port" 2>/dev/null; do
    kill -0 "${steps[0]}" 2>/dev/null || fail "Ray's head on $head ended before it answered; its output is above"
    [ $SECONDS -lt $end ] || fail "Ray's head on $head did not answer at $joined within $start_seconds s"
    sleep 1
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
    others=$((SLURM_JOB_NUM_NODES - 1))
    step --nodes="$others" --ntasks="$others" --exclude="$head" bash -c "$ray_node" bash --address "$joined" &
    steps+=($!)
fi

# --takeover: an earlier job of this study ran on another host and is over
KDTVIT_WHILE_PID=${steps[0]} bash "$until_final" kdtvit-ray sweep "$space" --data "$data" --out "$out" --address "$joined" --takeover "$@" &
driver=$! again=yes code=0
while [ -n "$again" ]; do # a signal ends `wait` before the driver has ended
    again=''
    wait "$driver" && code=0 || code=$?
done

requeue=''
if [ -n "$time_up" ] && [ $code -eq 130 ]; then
    requeue=yes
elif [ $code -eq 75 ] && ! kill -0 "${steps[0]}" 2>/dev/null; then
    say "Ray's head has died"
    [ "${SLURM_RESTART_COUNT:-0}" -ge "$most_restarts" ] || requeue=yes
fi
if [ -n "$requeue" ]; then
    trap - EXIT
    end_steps
    scontrol requeue "$SLURM_JOB_ID" || say "SLURM does not take the job again; the same sbatch command goes on"
fi
exit $code
