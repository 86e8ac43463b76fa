"""Real processes of one run on this machine: started together on free ports, waited for, and none left behind."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# "[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1", written piece by piece by several threads at once,
# so that a line can hold the pieces of two, and another the rest.
GLOO = re.compile(r"(\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d+)*")


class Processes:
    """The processes of one run. Their output is in files, so that none waits for a reader."""

    def __init__(self, commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]], folder: pathlib.Path) -> None:
        self._outputs = [open(folder / f"output_{index}.txt", "w+") for index in range(len(commands))]
        self.all = [
            subprocess.Popen(command, env=environment, cwd=REPOSITORY, stdout=output, stderr=output, start_new_session=True)
            for command, environment, output in zip(commands, environments, self._outputs, strict=True)
        ]

    def wait(self, seconds: float) -> list[int]:
        """Exit codes, when all have ended."""
        return [process.wait(seconds) for process in self.all]

    def output(self, index: int) -> str:
        return pathlib.Path(self._outputs[index].name).read_text()

    def said(self, index: int) -> str:
        """Its output without what Gloo reports of its connections."""
        return "\n".join(line for line in self.output(index).splitlines() if not GLOO.fullmatch(line))

    def wait_for(self, index: int, words: str, seconds: float = 120) -> None:
        """Until a process has said these words. Raises where it ends without them, or takes longer."""
        for _ in range(int(20 * seconds)):
            if words in self.output(index):
                return
            try:
                self.all[index].wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        assert words in self.output(index), self.output(index)

    def end(self) -> None:
        for process in self.all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for output in self._outputs:
            output.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(devices: int, **more: str) -> dict[str, str]:
    """Of a process with so many simulated devices."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "2"} | more


@contextlib.contextmanager
def started(count: int, devices: int, module: str, *arguments: str, each: Sequence[Mapping[str, str]] = ()) -> Iterator[Processes]:
    """`python -m MODULE ARGUMENTS...` as `count` processes of one run, each with so many devices. each: more environment of the first, second, ..."""
    address = f"127.0.0.1:{free_port()}"
    where = lambda index: [  # noqa: E731
        f"--config.distributed.coordinator={address}", f"--config.distributed.processes={count}", f"--config.distributed.process={index}",
    ]  # fmt: skip
    commands = [[sys.executable, "-m", module, *arguments, *(where(index) if count > 1 else ())] for index in range(count)]
    more = [*each, *[{}] * (count - len(each))]
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(commands, [environment(devices, **added) for added in more], pathlib.Path(folder))
        try:
            yield processes
        finally:
            processes.end()
