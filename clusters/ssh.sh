#!/usr/bin/env bash
# A Ray cluster by hand, on machines that you can log in to over SSH.
#
# Gives     Ray on each HOST, with all of its CPUs and GPUs; only who has the cluster's access token can use it.
# Edit      ENVIRONMENT, what each host runs before `ray` (the environment must be the same everywhere:
#           pip install -c .ci/pins.txt .), and KDTVIT_PORT where 6379 is taken.
# Launch    ENVIRONMENT='source /shared/venv/bin/activate' clusters/ssh.sh up HEAD [HOST ...]
#           and then on HEAD, under tmux or nohup, the command that this prints.
# Watch     kdtvit-ray status STUDY, from any machine that sees the folder; clusters/ssh.sh status HEAD
# Resume    the same sweep command; after a host was lost: clusters/ssh.sh join HEAD HOST
# End       clusters/ssh.sh down HEAD [HOST ...] stops all Ray of yours on these hosts, other clusters' too
#
# HEAD must be a name or address that the other hosts reach. The ports between the hosts must be open to each other and
# closed to others. To do it without this script: `ray start --head --port 6379` on one, `ray start --address HEAD:6379`
# on the others, and the sweep with `--address HEAD:6379`.
#
# Tried: these commands with an ssh that runs them here; a study on several nodes of one machine, with nodes that
# die and join; not several machines, not GPUs.
set -euo pipefail
fail() { echo "ssh.sh: $*" >&2; exit 2; }
[ $# -ge 2 ] || fail "expected up|join|status|down HEAD [HOST ...]; found '$*'"
what=$1 head=$2
shift 2
port=${KDTVIT_PORT:-6379}
address=${head#*@}:$port
environment=${ENVIRONMENT:-true}
ray="export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0; $environment && ray"

on() { # HOST COMMAND: stdin is the script's own
    ssh -o BatchMode=yes -o ConnectTimeout=15 "$1" "$2" || fail "host $1 failed, see above; nothing was started after it"
}

join() {
    token=$(on "$head" "cat ~/.ray/auth_token" </dev/null)
    for host in "$@"; do
        on "$host" "umask 077; mkdir -p ~/.ray; cat > ~/.ray/auth_token" <<<"$token"
        on "$host" "$ray start --address $address" </dev/null
    done
}

case $what in
up)
    on "$head" "$ray get-auth-token --generate >/dev/null && $ray start --head --port $port" </dev/null
    join "$@"
    echo "RAY_AUTH_MODE=token kdtvit-ray sweep breakhis --data DATA --out STUDY --address $address"
    ;;
join) join "$@" ;;
status) on "$head" "$ray status --address $address" </dev/null ;;
down) for host in "$@" "$head"; do on "$host" "$ray stop" </dev/null; done ;;
*) fail "'$what' is not known; allowed: up, join, status, down" ;;
esac
