#!/usr/bin/env bash
# What tools/tpu_vm.sh has each host of a TPU do: install, train apart from the connection that started it, and tell how it goes.
#
#   tools/tpu_worker.sh set-up          Python and packages
#   tools/tpu_worker.sh start FLAG...   python -m epo_jax.train FLAG..., with the bucket of every gs://BUCKET/... in them mounted
#   tools/tpu_worker.sh status          one line: bare machines, idle, running, done, stopped (by `stop`), interrupted, mistake, or failed
#   tools/tpu_worker.sh log             what the training prints, as it prints it
#   tools/tpu_worker.sh stop            SIGTERM, and waits until it has saved and ended
#
# The training gets the variables of ~/epo_jax.environment, such as keys of models behind an API.
set -euo pipefail
SELF="$(readlink -f "${BASH_SOURCE[0]}")"
cd "$(dirname "$SELF")/.."

STATE="$HOME/epo_jax_run"              # the training's process, output and exit code
MOUNTS="${EPO_JAX_MOUNTS:-/mnt/gs}"    # each bucket in a folder of its name
SAVING=300                             # seconds that it may take to save and end

set_up() {
    local python
    if [[ ! -e .venv/installed ]]; then
        python="$(find_python)"
        make PYTHON="$python" .venv/installed
    fi
    .venv/bin/python -m pip install --disable-pip-version-check --quiet "jax[tpu]"
    [[ ! -f "$HOME/epo_jax.environment" ]] || chmod 600 "$HOME/epo_jax.environment"
    touch .venv/set-up
    tell "set up"
}

# A Python of 3.11 or newer. TPU images carry an older one; uv fetches another.
find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    python3 -m pip install --quiet --user uv >&2
    "$HOME/.local/bin/uv" python install --quiet 3.12 >&2
    "$HOME/.local/bin/uv" python find 3.12
}

start() {
    local flag flags=()
    if running; then
        tell "running"
        return
    fi
    mkdir -p "$STATE"
    rm -f "$STATE"/{process,exit,stopped}
    for flag in "$@"; do
        if [[ $flag =~ gs://([a-z0-9][a-z0-9._-]+) ]]; then
            mount_bucket "${BASH_REMATCH[1]}"
        fi
        flags+=("${flag//gs:\/\//$MOUNTS/}")
    done
    setsid nohup bash "$SELF" supervise "${flags[@]}" </dev/null >>"$STATE/log" 2>&1 &
    echo $! >"$STATE/supervisor"
    tell "started"
}

# Runs the training to its end and keeps its exit code; in a session of its own, so that it outlives the connection.
supervise() {
    local process code
    if [[ -f "$HOME/epo_jax.environment" ]]; then
        set -a
        # shellcheck source=/dev/null
        source "$HOME/epo_jax.environment"
        set +a
    fi
    .venv/bin/python -m epo_jax.train "$@" &
    process=$!
    echo "$process" >"$STATE/process"
    trap : TERM # a machine that is shut down asks both to end; this one has the exit code to keep
    while :; do
        code=0
        wait "$process" || code=$?
        kill -0 "$process" 2>/dev/null || break
    done
    echo "$code" >"$STATE/exit"
}

mount_bucket() {
    local folder="$MOUNTS/$1"
    if mountpoint -q "$folder"; then
        return
    fi
    if ! command -v gcsfuse >/dev/null; then
        install_gcsfuse
    fi
    sudo mkdir -p "$folder"
    sudo chown "$(id -u):$(id -g)" "$folder"
    # Checkpoints are written beside their place and renamed; hosts must see each other's files at once.
    gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 "$1" "$folder" >&2
}

install_gcsfuse() {
    local key=/usr/share/keyrings/cloud.google.asc
    curl --fail --silent --show-error https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -c -s) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get -o DPkg::Lock::Timeout=600 -qq update >&2 # a new machine updates itself, and holds the lock
    sudo apt-get -o DPkg::Lock::Timeout=600 -qq install -y gcsfuse >&2
}

running() {
    local name
    for name in supervisor process; do
        if [[ -f "$STATE/$name" && ! -f "$STATE/exit" ]] && is_ours "$(<"$STATE/$name")"; then
            return 0
        fi
    done
    return 1
}

# After a restart of the machine another process may have the number.
is_ours() {
    [[ -r "/proc/$1/cmdline" ]] && tr '\0' ' ' <"/proc/$1/cmdline" | grep -qE 'epo_jax\.train|tpu_worker\.sh'
}

status() {
    if [[ ! -e .venv/set-up ]]; then
        tell "bare machines"
    elif running; then
        tell "running"
    elif [[ -f "$STATE/stopped" ]]; then
        tell "stopped"
    elif [[ -f "$STATE/exit" ]]; then
        case "$(<"$STATE/exit")" in
        0) tell "done" ;;
        130 | 143) tell "interrupted (by a signal)" ;;
        75) tell "interrupted (try again: $(tail -n 1 "$STATE/log"))" ;; # processes on other hosts did not come
        2) tell "mistake ($(tail -n 1 "$STATE/log"))" ;;
        *) tell "failed (exit code $(<"$STATE/exit"))" ;;
        esac
    elif [[ -f "$STATE/supervisor" ]]; then
        tell "interrupted (it is gone without an exit code: the machine was restarted)"
    else
        tell "idle"
    fi
}

stop() {
    if running; then
        touch "$STATE/stopped"
        until [[ -f "$STATE/process" ]] || ! running; do sleep 0.1; done
        kill -TERM "$(<"$STATE/process")" || true # where it has just ended by itself
        if ! timeout "$SAVING" tail --pid="$(<"$STATE/supervisor")" -s 0.2 -f /dev/null; then
            tell "still saving after $SAVING s"
            return 1
        fi
    fi
    status
}

tell() {
    echo "epo_jax on $(hostname): $1"
}

case "${1:-}" in
set-up) set_up ;;
start) start "${@:2}" ;;
supervise) supervise "${@:2}" ;;
status) status ;;
log) exec tail -n 100 -F "$STATE/log" ;;
stop) stop ;;
*)
    echo "tpu_worker.sh: ${1:-nothing} is no command: it is called by tools/tpu_vm.sh, with set-up, start, status, log or stop." >&2
    exit 2
    ;;
esac
