"""tools/tpu_vm.sh against a Google Cloud of folders (fake_gcloud.py), in which its commands, and those that it sends to the hosts, really run.

What stands in for the training on a host is a program of a few lines, which does what the test wrote in `plays`: a line for each TPU that there
has been, a word for each start on it.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
TOOL = REPOSITORY / "tools" / "tpu_vm.sh"
SCRIPTS = [*sorted((REPOSITORY / "tools").glob("*.sh")), *sorted((REPOSITORY / "examples").rglob("*.sbatch"))]
WHERE = ("--name=epo", "--zone=us-east5-a")
CONFIG = "--config=configs/alfshop.py:llama3_8b"

# In the place of a host's Python. `end`, `fail`, `mistake` and `missed` end with 0, 1, 2 and 75; `wait` runs until it is told to end, and so saves;
# `preempted` has its TPU taken away while it runs.
TRAINING = """#!/usr/bin/env bash
[[ "$*" != *"-m pip"* ]] || exit 0
shift 2
printf '%s\\n' "$@" >"$HOME/flags"
echo "key=${OPENAI_API_KEY:-none}"
echo start >>"$HOME/starts"
play="$(sed -n "$(cat "$FAKE_CLOUD/generation")p" "$FAKE_CLOUD/plays" | cut -d ' ' -f "$(wc -l <"$HOME/starts")")"
case "$play" in
end) exit 0 ;;
fail) exit 1 ;;
mistake) echo "epo_jax: no such field."; exit 2 ;;
missed) echo "epo_jax: the other processes did not come."; exit 75 ;;
preempted) echo SUSPENDED >"$FAKE_CLOUD/queue" ;;
vanished) echo PREEMPTED >"$FAKE_CLOUD/node" ;;
interrupted) exit 130 ;;
esac
trap 'echo saved; exit 130' TERM
while :; do read -r -t 60 <>"$FAKE_CLOUD/never"; done
"""


class Cloud:
    """Beside it, a clone of two files to send there: the scripts themselves."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.clone, commands = folder, folder / "clone", folder / "bin"
        (self.clone / "tools").mkdir(parents=True)
        for name in ("tpu_vm.sh", "tpu_worker.sh"):
            shutil.copy(REPOSITORY / "tools" / name, self.clone / "tools" / name)
        for command in ("init", "add --all"):
            subprocess.run(["git", "-C", self.clone, *command.split()], check=True, capture_output=True)
        commands.mkdir()
        os.mkfifo(folder / "never")
        self._program(commands / "gcloud", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S -E {REPOSITORY}/tests/tools/fake_gcloud.py "$@"\n')
        self._program(commands / "make", f'#!/bin/sh\nmkdir -p .venv/bin && cp {folder}/training .venv/bin/python && touch .venv/installed && echo "$@" >../made\n')
        self._program(commands / "python3.13", "#!/bin/sh\nexit 1\n")  # as one that is too old would
        self._program(commands / "python3.12", "#!/bin/sh\nexit 0\n")
        self._program(commands / "mountpoint", '#!/bin/sh\n[ -e "$2/mounted" ]\n')
        self._program(commands / "sudo", '#!/bin/sh\nexec "$@"\n')
        self._program(commands / "gcsfuse", '#!/bin/bash\necho "$@" >>"$FAKE_CLOUD/mounts"; touch "${@: -1}/mounted"\n')
        self._program(folder / "training", TRAINING)
        self.environment = os.environ | {"FAKE_CLOUD": str(folder), "PATH": f"{commands}:{os.environ['PATH']}", "EPO_JAX_MOUNTS": str(folder / "gs")}

    def _program(self, path: pathlib.Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def plays(self, *generations: str) -> None:
        (self.folder / "plays").write_text("".join(f"{line}\n" for line in generations))

    def __call__(self, command: str, *options: str, code: int = 0) -> str:
        """What the command says; AssertionError where it does not end with this exit code."""
        done = subprocess.run([str(self.clone / "tools" / "tpu_vm.sh"), command, *WHERE, *options], env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @property
    def calls(self) -> list[list[str]]:
        path = self.folder / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def count(self, *words: str) -> int:
        return sum(call[2 : 2 + len(words)] == list(words) for call in self.calls)

    def home(self, number: int = 0) -> pathlib.Path:
        return self.folder / "hosts" / str(number)

    def end(self) -> None:
        for file in self.folder.glob("hosts/*/epo_jax_run/*"):
            if file.name in ("process", "supervisor"):
                try:
                    os.kill(int(file.read_text()), signal.SIGKILL)
                except ProcessLookupError:
                    pass


@pytest.fixture
def cloud(tmp_path):
    made = Cloud(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing: pip install -r requirements-test.txt"
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(script, os.X_OK) or script.suffix == ".sbatch"


def test_from_the_queue_to_the_end(cloud, tmp_path) -> None:
    """Each command by itself, as the documentation has them, on the two hosts of a slice."""
    cloud.plays("wait end end")
    (tmp_path / "keys").write_text("OPENAI_API_KEY=secret\n")
    cloud("create-queue", "--type=v5e-16", "--spot", "--project=mine")
    (create,) = cloud.calls
    assert {"--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--node-id=epo", "--project=mine"} <= set(create)
    with open(cloud.clone / "tools" / "tpu_vm.sh", "a") as file:
        file.write("# not committed\n")
    (cloud.clone / "runs").mkdir()
    (cloud.clone / "runs" / "large").write_text("not tracked")
    cloud("set-up", f"--environment={tmp_path / 'keys'}")
    for number in (0, 1):
        sent = cloud.home(number) / "epo_jax"
        assert (sent / "tools" / "tpu_vm.sh").read_text().endswith("# not committed\n") and not (sent / "runs").exists()
        assert (cloud.home(number) / "made").read_text() == f"PYTHON={tmp_path}/bin/python3.12 .venv/installed\n"
        assert (cloud.home(number) / "epo_jax.environment").stat().st_mode & 0o77 == 0
    assert cloud("status").count(": idle") == 2
    flags = ("--run=gs://a-bucket/runs/x", "--", CONFIG, "--config.model.source=gs://other.bucket/a b'c")
    cloud("start", *flags)
    assert cloud("status").count(": running") == 2
    assert cloud("start", *flags).count(": running") == 2  # and not twice
    cloud("stop")
    assert cloud("status").count(": stopped") == 2
    log = (cloud.home(1) / "epo_jax_run" / "log").read_text()
    assert "saved" in log and "key=secret" in log
    mounts = tmp_path / "gs"
    assert (cloud.home(1) / "flags").read_text().splitlines() == [CONFIG, f"--config.model.source={mounts}/other.bucket/a b'c", f"--config.workdir={mounts}/a-bucket/runs/x"]
    mounted = (tmp_path / "mounts").read_text().splitlines()
    assert sorted(line.split()[-2] for line in mounted) == ["a-bucket", "other.bucket"]  # these "hosts" share a file system: once in all
    cloud("start", *flags)
    assert cloud("resume", "--type=v5e-16", "--poll=0", "--until_done", *flags).splitlines()[-1].endswith("done")
    cloud("delete")
    assert not cloud.home().exists()


@pytest.mark.parametrize("loss", ["preempted", "vanished"])
def test_it_goes_on_after_preemptions_by_itself(cloud, loss) -> None:
    """From nothing: the request waits, the TPU is taken away twice, the third ends the run."""
    cloud.plays(loss, loss, "end")
    (cloud.folder / "states").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\n")
    said = cloud("resume", "--type=v5p-8", "--spot", "--run=gs://bucket/run", "--until_done", "--poll=0", "--", CONFIG)
    assert (cloud.count("queued-resources", "create"), cloud.count("queued-resources", "delete")) == (3, 2)
    story = [line.removeprefix("tpu_vm.sh: ") for line in said.splitlines() if line.startswith("tpu_vm.sh: ")]
    assert story[:5] == ["no machines", "the request is WAITING_FOR_RESOURCES", "the request is PROVISIONING", "bare machines", "idle"]
    assert story.count("machines lost") == 2 and story[-1] == "done"
    created = [call for call in cloud.calls if "create" in call]
    assert created[0] == created[1] == created[2] and "--spot" in created[0]
    assert f"--config.workdir={cloud.folder}/gs/bucket/run" in (cloud.home() / "flags").read_text()


def test_failures_are_tried_again_and_counted(cloud) -> None:
    resume = ("--type=v5p-8", "--run=gs://bucket/run", "--until_done", "--poll=0", "--failures=2", "--", CONFIG)
    cloud.plays("fail interrupted end")
    assert "failed" in cloud("resume", *resume)
    assert (cloud.home() / "starts").read_text().count("start") == 3
    cloud("delete")
    cloud.plays("", "fail fail end")
    assert "the training has failed 2 times" in cloud("resume", *resume, code=2)
    assert (cloud.home() / "starts").read_text().count("start") == 2


def test_a_mistake_is_not_tried_again(cloud) -> None:
    cloud.plays("mistake end")
    resume = ("--type=v5p-8", "--run=/disk/run", "--until_done", "--poll=0", "--", CONFIG)
    assert "epo_jax: no such field." in cloud("resume", *resume, code=2)
    assert (cloud.home() / "starts").read_text().count("start") == 1
    cloud("resume", *resume)  # with what was wrong mended


def test_processes_that_did_not_come_are_awaited_again_and_not_counted(cloud) -> None:
    """On one host the training misses the other's, on the other it still waits; and that happens more often than failures are allowed to."""
    cloud.plays("missed missed missed end")
    resume = ("--type=v5p-8", "--run=gs://bucket/run", "--until_done", "--poll=0", "--failures=1", "--", CONFIG)
    said = cloud("resume", *resume)
    assert "interrupted" in said and "mistake" not in said and said.splitlines()[-1].endswith("done")
    assert (cloud.home() / "starts").read_text().count("start") == 4


def test_what_somebody_stopped_stays_stopped(cloud) -> None:
    cloud.plays("wait")
    options = ("--type=v5p-8", "--run=gs://bucket/run", "--poll=0")
    cloud("resume", *options, "--", CONFIG)
    waiting = subprocess.Popen([str(cloud.clone / "tools" / "tpu_vm.sh"), "resume", *WHERE, *options, "--until_done", "--", CONFIG], env=cloud.environment, stderr=subprocess.PIPE, text=True)
    assert "running" in waiting.stderr.readline()
    cloud("stop")
    assert waiting.communicate(timeout=60)[1].splitlines()[-1].endswith("stopped") and waiting.returncode == 0


def test_google_cloud_that_does_not_answer_is_asked_again(cloud) -> None:
    """An error that is not NOT_FOUND must not have another TPU created."""
    cloud.plays("end")
    cloud("create-queue", "--type=v5p-8")
    gcloud, times = cloud.folder / "bin" / "gcloud", cloud.folder / "times"
    gcloud.rename(cloud.folder / "bin" / "real")
    gcloud.write_text(f'#!/bin/bash\necho x >>{times}\nif (($(wc -l <{times}) < 4)); then echo "ERROR: UNAVAILABLE: try later" >&2; exit 1; fi\nexec "${{0%gcloud}}real" "$@"\n')
    gcloud.chmod(0o755)
    said = cloud("resume", "--type=v5p-8", "--run=gs://bucket/run", "--until_done", "--poll=0", "--", CONFIG)
    assert "UNAVAILABLE" in said and cloud.count("queued-resources", "create") == 1


def test_dry_run_prints_commands_that_a_shell_reads_back(cloud) -> None:
    """Fed to a shell, they are the calls that the command itself makes; and nothing is called while they are printed."""
    options = ("--run=gs://bucket/run", "--", CONFIG, "--config.name=it's $HOME; `id`")
    for command, more in (("create-queue", ("--type=v6e-16",)), ("start", options), ("status", ()), ("stop", ()), ("logs", ("--worker=1",)), ("delete", ())):
        printed = cloud(command, "--dry_run", *more)
        calls = [shlex.split(line) for line in printed.splitlines()]
        assert all(call[:3] == ["gcloud", "compute", "tpus"] and "--zone=us-east5-a" in call for call in calls), printed
    assert cloud.calls == []
    cloud.plays("end")
    cloud("create-queue", "--type=v6e-16")
    cloud("set-up")
    cloud("start", *options)
    printed = cloud("start", "--dry_run", *options)
    assert shlex.split(printed)[1:] == cloud.calls[-1]
    assert "it's $HOME; `id`" in (cloud.home() / "flags").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["begin"], "no command 'begin'"),
        (["status", "--name=epo"], "is no zone"),
        (["status", "--zone=us-east5-a"], "names no TPU"),
        (["status", "--name=Epo", "--zone=us-east5-a"], "names no TPU"),
        (["status", *WHERE, "--nmae=x"], "no option '--nmae=x'"),
        (["create-queue", *WHERE], "is no TPU"),
        (["create-queue", *WHERE, "--type=h100-8"], "is no TPU"),
        (["start", *WHERE, "--", CONFIG], "no folder for the run"),
        (["start", *WHERE, "--run=gs://bucket", "--", CONFIG], "no folder for the run"),
        (["start", *WHERE, "--run=runs/x", "--", CONFIG], "no folder for the run"),
        (["start", *WHERE, "--run=gs://bucket/run"], "no configuration"),
        (["start", *WHERE, "--run=gs://bucket/run", "--", CONFIG, "--config.workdir=/x"], "given twice"),
        (["stop", *WHERE, "--", CONFIG], "stop takes no flags"),
        (["logs", *WHERE, "--worker=-1"], "is no host"),
        (["resume", *WHERE, "--type=v5p-8", "--run=/x", "--poll=soon", "--", CONFIG], "no number of seconds"),
        (["set-up", *WHERE, "--environment=/none"], "is no file"),
        (["status", *WHERE], "there is no gcloud here"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, sentence, tmp_path) -> None:
    for name in ("bash", "readlink", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    done = subprocess.run([str(TOOL), *arguments], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert sentence in done.stderr and re.match(r"tpu_vm\.sh: .*\.$", done.stderr)


def test_help_has_every_command_and_option() -> None:
    text = subprocess.run([str(TOOL), "--help"], capture_output=True, text=True, check=True).stdout
    script = TOOL.read_text()
    commands = re.search(r'^COMMANDS="(.*)"', script, re.MULTILINE)[1].split()
    options = re.findall(r"^        (--[a-z_]+)", script, re.MULTILINE)
    assert len(commands) == 8 and len(options) == 13
    for name in (*commands, *options):
        assert name in text, name


def test_the_documentation_gives_commands_that_work() -> None:
    """Each that docs/running.md shows, as a dry run: what it prints is what Google Cloud would be asked."""
    lines = [line.split("  #")[0] for line in (REPOSITORY / "docs" / "running.md").read_text().splitlines() if line.startswith("tools/tpu_vm.sh ")]
    assert len(lines) >= 5
    for line in lines:
        words = [word for word in shlex.split(line) if not word.startswith("--environment=")]
        done = subprocess.run([*words[:2], "--dry_run", *words[2:]], cwd=REPOSITORY, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "gcloud compute tpus" in done.stdout, done.stderr
