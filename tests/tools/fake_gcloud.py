"""Google Cloud's command line as tools/tpu_vm.sh uses it, over a folder: the hosts of a TPU are homes in it, and what is sent to them runs here.

FAKE_CLOUD names the folder. calls.jsonl has the arguments of every call; queue and node the states, as Google Cloud words them, of what exists;
generation how many TPUs there have been; hosts/N the homes. A test writes `states`: what the queued resource's state is at each look, one a line,
until it stays ACTIVE.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
QUEUE, NODE, HOSTS, GENERATION, STATES = (CLOUD / name for name in ("queue", "node", "hosts", "generation", "states"))
COUNT = 2  # hosts of a TPU


def main(arguments: list[str]) -> int:
    with open(CLOUD / "calls.jsonl", "a") as file:
        file.write(json.dumps(arguments) + "\n")
    assert arguments[:2] == ["compute", "tpus"], arguments
    words = [argument for argument in arguments[2:] if not argument.startswith("--")]
    options = dict(argument[2:].partition("=")[::2] for argument in arguments[2:] if argument.startswith("--"))
    assert options["zone"] == "us-east5-a"
    return COMMANDS[" ".join(words[:2])](words[2:], options)


def create(_: list[str], options: dict[str, str]) -> int:
    if QUEUE.exists():
        return refuse("ALREADY_EXISTS: it is there")
    assert options["node-id"] and options["runtime-version"].startswith("v2-alpha-") and "-" in options["accelerator-type"]
    generation = int(GENERATION.read_text()) + 1 if GENERATION.exists() else 1
    GENERATION.write_text(str(generation))
    QUEUE.write_text("ACTIVE")
    NODE.write_text("READY")
    for number in range(COUNT):
        (HOSTS / str(number)).mkdir(parents=True)
    return 0


def describe_queue(_: list[str], options: dict[str, str]) -> int:
    assert options["format"] == "value(state.state)"
    waiting = STATES.read_text().split() if STATES.exists() else []
    if QUEUE.exists() and waiting:
        STATES.write_text("\n".join(waiting[1:]))
        return tell(waiting[0])
    return tell(QUEUE.read_text()) if QUEUE.exists() else refuse("NOT_FOUND: Resource 'projects/p/queuedResources/epo' was not found")


def describe_node(_: list[str], options: dict[str, str]) -> int:
    assert options["format"] == "value(state)"
    return tell(NODE.read_text()) if NODE.exists() else refuse("NOT_FOUND: Resource 'projects/p/nodes/epo' was not found")


def delete(_: list[str], options: dict[str, str]) -> int:
    assert "force" in options and "quiet" in options
    if not QUEUE.exists():
        return refuse("NOT_FOUND: there is none")
    for file in HOSTS.glob("*/epo_jax_run/*"):
        if file.name in ("process", "supervisor"):
            try:
                os.kill(int(file.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
    shutil.rmtree(HOSTS)
    QUEUE.unlink()
    NODE.unlink()
    return 0


def scp(words: list[str], options: dict[str, str]) -> int:
    source, destination = words[0], words[1].split(":")[1]
    for home in hosts(options["worker"]):
        shutil.copy(source, home / destination)
    return 0


def ssh(_: list[str], options: dict[str, str]) -> int:
    command = options["command"]
    codes = [subprocess.run(["bash", "-c", command], cwd=home, env=os.environ | {"HOME": str(home)}, check=False).returncode for home in hosts(options["worker"])]
    return max(codes)


def hosts(worker: str) -> list[pathlib.Path]:
    return sorted(HOSTS.iterdir()) if worker == "all" else [HOSTS / worker]


def tell(words: str) -> int:
    print(words)
    return 0


def refuse(words: str) -> int:
    print(f"ERROR: (gcloud.compute.tpus) {words}", file=sys.stderr)
    return 1


COMMANDS = {
    "queued-resources create": create,
    "queued-resources describe": describe_queue,
    "queued-resources delete": delete,
    "tpu-vm describe": describe_node,
    "tpu-vm scp": scp,
    "tpu-vm ssh": ssh,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
