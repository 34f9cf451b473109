#!/usr/bin/env bash
# Runs a kdtvit-ray command again and again until its exit code is final. The other files of this folder use it.
#
#   until_final.sh kdtvit-ray sweep breakhis --data ... --out ... --address auto --takeover
#
# What a command's exit code means here:
#   0            finished                                                               exit 0
#   1            finished, some trials failed, which is a result and no failed job      exit 0
#   2            a mistake: told once, final                                            exit 2
#   130          stopped by a signal                                                    exit 130
#   others       the cluster or the storage is away (75), or the driver died (out of memory: 137): the same command goes
#                on, after KDTVIT_PAUSE seconds (30), KDTVIT_ATTEMPTS times (10) at most; then this exits with the last
#                code. Where KDTVIT_WHILE_PID is set, only as long as that process lives
# Python itself ends with 1 where it cannot start the program. That has not finished the study, `kdtvit-ray status` knows
# it, and the command is started again like one that died.
#
# SIGTERM reaches this script alone and is handed on; SIGINT reaches its whole process group, as Ctrl-C and
# `ray job stop` (with RAY_JOB_STOP_SIGNAL=SIGINT) do. Either stops the study at the end of the epoch.
#
# Tried: all of this, with commands that end in each of these ways.
set -u
[ $# -gt 0 ] || { echo "until_final.sh: no command is given; allowed: until_final.sh kdtvit-ray sweep ..." >&2; exit 2; }
attempts=${KDTVIT_ATTEMPTS:-10} pause=${KDTVIT_PAUSE:-30}
child='' again='' stopped=''

# shellcheck disable=SC2329 # the trap calls it
hand_on() {
    stopped=yes again=yes
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
}
trap hand_on TERM
trap 'stopped=yes again=yes' INT

study_of() { # the study's folder among the arguments of `sweep` or `confirm`
    command=$2
    shift 2
    while [ $# -gt 1 ]; do
        case $1 in
        --out) echo "$2"; return ;;
        --out=*) echo "${1#*=}"; return ;;
        --*=* | --retry-failed | --search | --takeover) ;;
        -*) shift ;; # its value follows
        *) [ "$command" != confirm ] || { echo "$1"; return; } ;;
        esac
        shift
    done
}

finished() {
    study=$(study_of "$@" '' '')
    [ -z "$study" ] || "$1" status "$study" 2>/dev/null | head -n 1 | grep -q ': finished$'
}

for ((attempt = 1; attempt <= attempts; attempt++)); do
    "$@" &
    child=$! again=yes
    while [ -n "$again" ]; do # a signal ends `wait` before the child has ended
        again=''
        wait "$child"
        code=$?
    done
    child=''
    case $code in
    0) exit 0 ;;
    1) if finished "$@"; then echo "until_final.sh: finished; some trials failed, the report lists them"; exit 0; fi ;;
    2 | 130) exit "$code" ;;
    esac
    [ -z "$stopped" ] || exit 130
    echo "until_final.sh: the driver ended with code $code, attempt $attempt of $attempts" >&2
    [ "$attempt" -lt "$attempts" ] || break
    [ -z "${KDTVIT_WHILE_PID:-}" ] || kill -0 "$KDTVIT_WHILE_PID" 2>/dev/null || break
    sleep "$pause" &
    wait $!
    [ -z "$stopped" ] || exit 130
done
exit "$code"
