#!/usr/bin/env bash
# Trains on Cloud TPU VMs, one host or all hosts of a slice, with Google Cloud's own command line (gcloud).
#
#   tools/tpu_vm.sh create-queue --name=epo --zone=us-east5-a --type=v5p-8 --spot      ask for the machines; they come when there are some
#   tools/tpu_vm.sh set-up --name=epo --zone=us-east5-a                                this clone and its packages, on every host
#   tools/tpu_vm.sh start  --name=epo --zone=us-east5-a --run=gs://my-bucket/run -- --config=configs/alfshop.py:llama3_8b
#   tools/tpu_vm.sh status --name=epo --zone=us-east5-a                                of the queue, and of the training on each host
#   tools/tpu_vm.sh logs   --name=epo --zone=us-east5-a [--worker=0]                   what it prints, as it prints it
#   tools/tpu_vm.sh stop   --name=epo --zone=us-east5-a                                saves, and ends; `start` goes on from there
#   tools/tpu_vm.sh resume --name=epo --zone=us-east5-a --type=v5p-8 --spot --run=gs://my-bucket/run [--until_done] -- --config=...
#   tools/tpu_vm.sh delete --name=epo --zone=us-east5-a                                gives the machines back, disks and all
#
# `resume` does all that is missing: asks for machines where there are none or they were taken away, waits for them, sets up, starts. With
# --until_done it stays and does so after each preemption or failure, until the run has ended or somebody stopped it. It can begin a run, too.
#
#   --name=NAME --zone=ZONE [--project=PROJECT]   the queued resource, and the TPU in it
#   --type=v5p-8      v4, v5p: cores, two a chip; v5e, v6e: chips.     --runtime=VERSION  the image, if not the usual one of that type
#   --spot            cheaper, and may be taken away at any time
#   --run=FOLDER      of the run: gs://my-bucket/run, which every host mounts, or a path: on a slice, in a network file system that all
#                     of its hosts have mounted (/home is each host's own)
#   --environment=F   with `set-up` or `resume`: a file of NAME=value lines that the training gets, such as OPENAI_API_KEY, or
#                     ALFWORLD_DATA=/mnt/gs/my-bucket/alfworld: the buckets that --run and the flags name are mounted there
#   --poll=60         with `resume`: seconds between two looks             --failures=5  of the training, in all, after which it gives up
#   --dry_run         prints the commands, and runs none
#   -- FLAG...        of python -m epo_jax.train; gs://BUCKET/... in them is the mounted bucket
set -euo pipefail
ROOT="$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"

COMMANDS="create-queue set-up start resume status logs stop delete"
NAME="" ZONE="" PROJECT="" TYPE="" RUNTIME="" SPOT="" RUN="" ENVIRONMENT="" WORKER=0 POLL=60 FAILURES=5 UNTIL_DONE="" DRY_RUN=""
FLAGS=()

main() {
    case "${1:-}" in
    "" | -h | --help | help)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
        return
        ;;
    esac
    read_options "${@:2}"
    check "$1"
    case "$1" in
    create-queue) create_queue ;;
    set-up) set_up ;;
    start) start ;;
    resume) resume ;;
    status)
        queue describe "$NAME" --format='value(state.state)'
        on_hosts all "tools/tpu_worker.sh status"
        ;;
    logs) on_hosts "$WORKER" "tools/tpu_worker.sh log" ;;
    stop) on_hosts all "tools/tpu_worker.sh stop" ;;
    delete) queue delete "$NAME" --force --quiet ;;
    esac
}

# --- what the user says -----------------------------------------------------------------------------------------------------

read_options() {
    local option
    while (($#)); do
        option="$1"
        shift
        case "$option" in
        --name=*) NAME="${option#*=}" ;;
        --zone=*) ZONE="${option#*=}" ;;
        --project=*) PROJECT="${option#*=}" ;;
        --type=*) TYPE="${option#*=}" ;;
        --runtime=*) RUNTIME="${option#*=}" ;;
        --run=*) RUN="${option#*=}" ;;
        --environment=*) ENVIRONMENT="${option#*=}" ;;
        --worker=*) WORKER="${option#*=}" ;;
        --poll=*) POLL="${option#*=}" ;;
        --failures=*) FAILURES="${option#*=}" ;;
        --spot) SPOT=yes ;;
        --until_done) UNTIL_DONE=yes ;;
        --dry_run) DRY_RUN=yes ;;
        --)
            FLAGS=("$@")
            return
            ;;
        *) fail "there is no option '$option': options are written --name=value, and the training's flags follow after --." ;;
        esac
    done
}

check() {
    local command="$1" flag
    [[ " $COMMANDS " == *" $command "* ]] || fail "there is no command '$command': choose one of ${COMMANDS// /, }."
    [[ $NAME =~ ^[a-z]([-a-z0-9]{0,60}[a-z0-9])?$ ]] ||
        fail "--name='$NAME' names no TPU: give lower-case letters, digits and hyphens, as in --name=epo."
    [[ $ZONE =~ ^[a-z]+-[a-z]+[0-9]+-[a-z]$ ]] || fail "--zone='$ZONE' is no zone: give one as in --zone=us-east5-a."
    [[ $WORKER =~ ^([0-9]+|all)$ ]] || fail "--worker='$WORKER' is no host: give a number from 0, or all."
    [[ $POLL =~ ^[0-9]+$ ]] || fail "--poll='$POLL' is no number of seconds: give one as in --poll=60."
    [[ $FAILURES =~ ^[1-9][0-9]*$ ]] || fail "--failures='$FAILURES' is no number: give one of 1 or more."
    if [[ $command == create-queue || $command == resume ]]; then
        [[ $TYPE =~ ^(v4|v5e|v5litepod|v5p|v6e)-([1-9][0-9]*)$ ]] || fail "--type='$TYPE' is no TPU: give one as in --type=v5p-8, v5e-16 or v6e-16."
    fi
    if [[ $command == start || $command == resume ]]; then
        [[ $RUN =~ ^(gs://[a-z0-9][a-z0-9._-]+/.|/.) ]] ||
            fail "--run='$RUN' is no folder for the run: give --run=gs://my-bucket/run, or a path in a file system that all hosts share."
        [[ " ${FLAGS[*]-}" == *" --config="* ]] ||
            fail "no configuration: give the training's flags at the end, as in -- --config=configs/alfshop.py:llama3_8b."
        for flag in "${FLAGS[@]}"; do
            [[ $flag != --config.workdir=* ]] || fail "the run's folder is given twice: --run=$RUN says where it is, so leave $flag out."
        done
    elif ((${#FLAGS[@]})); then
        fail "$command takes no flags of the training: leave out what follows --."
    fi
    [[ -z $ENVIRONMENT || -f $ENVIRONMENT ]] || fail "--environment='$ENVIRONMENT' is no file: give one of NAME=value lines."
    [[ -n $DRY_RUN ]] || command -v gcloud >/dev/null ||
        fail "there is no gcloud here: install the Google Cloud CLI, or see the commands with --dry_run."
    if [[ -n $SPOT && $RUN == /* && ($command == start || $command == resume) ]]; then
        say "the disks of spot machines go with them: what is in $RUN is lost at a preemption, unless it is mounted from elsewhere."
    fi
}

# --- the commands -----------------------------------------------------------------------------------------------------------

create_queue() {
    local type="${TYPE/#v5e-/v5litepod-}" options=()
    options=(--node-id="$NAME" --accelerator-type="$type" --runtime-version="${RUNTIME:-$(runtime_of "$type")}")
    [[ -z $SPOT ]] || options+=(--spot)
    queue create "$NAME" "${options[@]}" --quiet
}

# As cloud.google.com/tpu/docs/runtimes names them for JAX.
runtime_of() {
    case "$1" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    *) echo tpu-ubuntu2204-base ;;
    esac
}

# The files that git tracks, as they are here, changed or not.
set_up() {
    local archive=/tmp/epo_jax.tar.gz pack status=0
    [[ -n $DRY_RUN ]] || archive="$(mktemp --suffix=.tar.gz)"
    pack="git -C $(quoted "$ROOT") ls-files -z | tar --directory=$(quoted "$ROOT") --null --files-from=- --create --gzip --file=$archive"
    if [[ -n $DRY_RUN ]]; then
        echo "$pack"
    else
        bash -o pipefail -c "$pack" || return
    fi
    {
        tpu scp "$archive" "$NAME:epo_jax.tar.gz" --worker=all --quiet &&
            { [[ -z $ENVIRONMENT ]] || tpu scp "$ENVIRONMENT" "$NAME:epo_jax.environment" --worker=all --quiet; } &&
            remote all "mkdir -p epo_jax && tar --extract --gzip --file=epo_jax.tar.gz --directory=epo_jax && cd epo_jax && tools/tpu_worker.sh set-up"
    } || status=$?
    [[ -n $DRY_RUN ]] || rm -f "$archive"
    return "$status"
}

start() {
    on_hosts all "tools/tpu_worker.sh start $(quoted "${FLAGS[@]}" --config.workdir="$RUN")"
}

resume() {
    local failures=0 before="" now started=""
    if [[ -n $DRY_RUN ]]; then
        echo "# of these, what is missing:"
        queue describe "$NAME" --format='value(state.state)'
        queue delete "$NAME" --force --quiet
        create_queue
        set_up
        start
        return
    fi
    while :; do
        now="$(standing)"
        [[ $now == "$before" ]] || say "$now"
        before="$now"
        case "$now" in
        "no machines") create_queue || say "the request was not taken" ;;
        "machines lost") queue delete "$NAME" --force --quiet || say "the request could not be taken back" ;;
        "request failed")
            count_failure "the request for machines"
            queue delete "$NAME" --force --quiet || say "the request could not be taken back"
            ;;
        "bare machines") set_up || say "they could not be set up" ;;
        "running") started=yes ;;
        "done" | "stopped") [[ -z $started ]] || return 0 ;;& # what an earlier call left begins anew
        "mistake") [[ -z $started ]] || fail "the training refuses what it was given: $(the_mistake)" ;;&
        "failed") [[ -z $started ]] || count_failure "the training" ;;&
        "idle" | "done" | "stopped" | "interrupted" | "mistake" | "failed")
            on_hosts all "tools/tpu_worker.sh stop" >/dev/null || true # where it still runs without the others
            start && started=yes
            ;;
        esac
        if [[ -z $UNTIL_DONE && -n $started ]]; then
            return
        fi
        sleep "$POLL"
    done
}

the_mistake() {
    on_hosts all "tools/tpu_worker.sh status" 2>/dev/null | grep -m 1 ': mistake'
}

count_failure() {
    failures=$((failures + 1))
    ((failures < FAILURES)) || fail "$1 has failed $failures times: see tools/tpu_vm.sh status and logs with --name=$NAME --zone=$ZONE."
}

# Where all this stands, in a word or two: of the hosts, the one that needs something done.
standing() {
    local state report word
    state="$(describe queue)"
    case "$state" in
    ACTIVE) state="$(describe tpu)" ;;
    absent) echo "no machines" && return ;;
    SUSPENDED) echo "machines lost" && return ;;
    FAILED) echo "request failed" && return ;;
    *) echo "the request is $state" && return ;;
    esac
    case "$state" in
    READY) ;;
    absent | PREEMPTED | TERMINATED | STOPPED) echo "machines lost" && return ;;
    *) echo "the machines are $state" && return ;;
    esac
    if ! report="$(remote all "if cd epo_jax 2>/dev/null; then tools/tpu_worker.sh status; else echo 'epo_jax: bare machines'; fi" 2>/dev/null)"; then
        echo "the machines do not answer"
        return
    fi
    for word in "bare machines" mistake failed interrupted idle running stopped "done"; do
        if grep -q "^epo_jax.*: $word" <<<"$report"; then
            echo "$word"
            return
        fi
    done
    echo "the machines do not answer"
}

# The state of the queued resource (queue) or of its TPU (tpu) as Google Cloud names it; absent; or unknown, where it cannot be asked.
describe() {
    local format='value(state)' answer
    [[ $1 == tpu ]] || format='value(state.state)'
    if answer="$("$1" describe "$NAME" --format="$format" 2>&1)"; then
        echo "${answer##*$'\n'}"
    elif [[ $answer == *NOT_FOUND* ]]; then
        echo "absent"
    else
        say "${answer##*$'\n'}"
        echo "unknown"
    fi
}

# --- Google Cloud -----------------------------------------------------------------------------------------------------------

queue() { cloud queued-resources "$@"; }

tpu() { cloud tpu-vm "$@"; }

remote() { tpu ssh "$NAME" --worker="$1" --command="$2" --quiet; }

on_hosts() { remote "$1" "cd epo_jax && $2"; }

cloud() {
    local command=(gcloud compute tpus "$@" --zone="$ZONE")
    [[ -z $PROJECT ]] || command+=(--project="$PROJECT")
    if [[ -n $DRY_RUN ]]; then
        quoted "${command[@]}"
        echo
    else
        "${command[@]}"
    fi
}

# As a shell reads them back.
quoted() {
    local word words=()
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
        words+=("$word")
    done
    echo -n "${words[*]}"
}

say() { echo "tpu_vm.sh: $*" >&2; }

fail() {
    say "$*"
    exit 2
}

main "$@"
