"""Several processes on this machine: that they hear each other, learn what one process learns, stop together, and end when one dies."""

from __future__ import annotations

import json
import pathlib
import re
import socket
import time

import jax
import numpy as np
import pytest

from configs.defaults import get_defaults
from epo_jax.errors import UserError
from epo_jax.hosts import exchange
from epo_jax.hosts.joining import joined
from epo_jax.interrupt import StopRequest
from epo_jax.mesh import make_mesh
from tests.hosts.learning import learned
from tests.hosts.processes import started

SECONDS = 100  # at most; on an idle machine a few
LOST = "it ended without a word: killed, out of memory, or aborted by its runtime"


def members(count, task, *more, devices=1):
    return started(count, devices, "tests.hosts.member", f"--task={task}", *more)


def told(processes, index):
    """What a process said, as JSON."""
    return [json.loads(line) for line in processes.output(index).splitlines() if line.startswith(("{", '"'))]


def nobody_is_left(processes):
    """Neither a process nor a watch: each of them is in a session of the test's own making, or has such a parent."""
    own = {process.pid for process in processes.all}
    for status in pathlib.Path("/proc").glob("[0-9]*/status"):
        try:
            text, command = status.read_text(), (status.parent / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        parent = int(re.search(r"PPid:\s+(\d+)", text)[1])
        assert parent not in own and int(status.parent.name) not in own, command


def test_what_one_says_all_hear():
    with members(2, "exchanges") as processes:
        assert processes.wait(SECONDS) == [0, 0], processes.output(1)
        for index in range(2):
            [heard] = told(processes, index)
            assert heard["rounds"] == [[{"from": 0, "round": round}, {"from": 1, "round": round}] for round in range(5)]
            assert heard["whole"] == [True, True] and heard["made"] == ["made by", 0]
            assert heard["refused"] == "process 1 of 2: no such weights."
        nobody_is_left(processes)


@pytest.mark.parametrize("count, devices", [(2, 2), pytest.param(4, 1, marks=pytest.mark.slow)])
def test_several_processes_learn_what_one_learns(tmp_path, count, devices):
    """Four devices in one process, and in several: the same data in, the same parameters out; and each process's own copy is whole."""
    with members(count, "learn", f"--output={tmp_path}/found.npz", devices=devices) as processes:
        expected = learned(make_mesh({"fsdp": -1}, devices=jax.devices()[:4]))
        assert processes.wait(SECONDS) == [0] * count, processes.output(0) + processes.output(1)
    found = np.load(tmp_path / "found.npz")
    for name, array in expected.items():
        if name.startswith("metrics"):
            np.testing.assert_allclose(found[name], array, rtol=1e-5, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], array, atol=1e-6, rtol=0, err_msg=name)
            np.testing.assert_array_equal(found[name], found[name.replace("params.", "own.")])


@pytest.mark.parametrize("count, task, dead", [(3, "lose", 2), pytest.param(3, "lose_the_first", 0, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_the_others_with_its_name(count, task, dead):
    with members(count, task) as processes:
        processes.wait_for(dead, '"met"')
        start = time.monotonic()
        codes = processes.wait(SECONDS)
        assert time.monotonic() - start < 60
        assert codes[dead] == -9 and all(code for code in codes)
        for index in set(range(count)) - {dead}:
            [sentence] = [line for line in processes.output(index).splitlines() if line.startswith("epo_jax: ")]
            assert re.match(rf"epo_jax: process {dead} of {count} \(on \S+\) has ended, so this one ends too: {LOST}\. The same command", sentence)
            assert "Traceback" not in processes.output(index)
        nobody_is_left(processes)


@pytest.mark.slow
@pytest.mark.parametrize("task, code, words", [("mistake", 2, "no such weights"), ("bug", 1, "KeyError: 'a bug'")])
def test_a_process_that_cannot_go_on_tells_the_others_why(task, code, words):
    with members(3, task) as processes:
        assert processes.wait(SECONDS) == [code] * 3
        for index in (0, 2):
            assert processes.output(index).count("\n") == 1
            assert f"process 1 of 3 (on {socket.gethostname()}) has ended, so this one ends too: {words}. The same command" in processes.output(index)
        assert words in processes.output(1)
        nobody_is_left(processes)


@pytest.mark.slow
def test_a_request_to_stop_that_one_process_gets_stops_all_before_the_same_step():
    with members(3, "stop_together") as processes:
        assert processes.wait(SECONDS) == [130] * 3, processes.output(0)
        stopped = [told(processes, index) for index in range(3)]
        assert stopped[0] == stopped[1] == stopped[2] and stopped[0][0]["requested"]


def test_a_process_that_is_asked_to_stop_while_it_waits_tells_the_others():
    with members(2, "wait_and_be_asked") as processes:
        assert processes.wait(SECONDS) == [130, 130], processes.output(0)
        assert all(told(processes, index)[0]["requested"][0] for index in range(2))


@pytest.mark.slow
def test_who_plays_ahead_leaves_it_to_the_thread_that_steps_to_say_when_to_stop():
    with members(2, "ask_while_stepping") as processes:
        assert processes.wait(SECONDS) == [130, 130], processes.output(0) + processes.output(1)
        assert told(processes, 0) == told(processes, 1)


def test_a_folder_that_is_not_shared_is_told_at_the_start(tmp_path):
    with members(2, "share_no_folder", f"--output={tmp_path}") as processes:
        assert processes.wait(SECONDS) == [0, 0], processes.output(0) + processes.output(1)
        for index in range(2):
            shared, own = told(processes, index)
            assert shared == {"shared": "opened"} and own["own"].startswith("process 1 of 2: the run folder run is not shared")
    assert not list(tmp_path.rglob(".shared"))


@pytest.mark.slow
def test_processes_that_do_not_come_are_missed():
    with started(1, 1, "tests.hosts.member", "--task=exchanges", "--config.distributed.coordinator=127.0.0.1:1",
                 "--config.distributed.processes=2", "--config.distributed.process=1", "--config.distributed.start_timeout_s=3") as processes:  # fmt: skip
        assert processes.wait(SECONDS) == [75], processes.output(0)  # which a person need not mend
        assert "the other processes of this run did not come within 3 s" in processes.output(0)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"coordinator": "host-0"}, "give HOST:PORT"),
        ({"coordinator": "host-0:8476"}, "process is -1 of 0"),
        ({"coordinator": "host-0:8476", "processes": 2, "process": 2}, "process is 2 of 2"),
        ({"coordinator": "auto", "processes": 2}, "name the first process"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, words):
    settings = get_defaults().distributed
    settings.update(changes)
    with pytest.raises(UserError, match=words), joined(settings):
        pass


def test_alone_nothing_is_exchanged():
    with joined(get_defaults().distributed) as stop:
        assert type(stop) is StopRequest and (exchange.count(), exchange.index()) == (1, 0)
        assert exchange.gather_json({"a": 1}) == [{"a": 1}] and exchange.by_first(lambda: object) is object


def test_a_cluster_that_is_one_process_is_no_cluster(monkeypatch):
    """A SLURM step of one task."""
    for name, value in {"JOB_ID": "7", "STEP_NODELIST": "node1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "STEP_NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with joined(get_defaults().distributed):
        assert exchange.count() == 1
