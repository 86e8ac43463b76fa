"""Writes the page that shows a run, or serves it while the run goes on.

    python -m epo_jax.report --run=runs/alfshop                         writes runs/alfshop/page.html, which opens from disk
    python -m epo_jax.report --run=runs/alfshop --watch [--port=8001]   serves it to this machine, and a newer one after each round
    python -m epo_jax.report --run=runs/alfshop --evaluations=A,B       with the comparison of two folders of epo_jax.evaluate

The page holds curves, every episode, evaluations, warnings, and where the run comes from. Training writes it after every round.
"""

from __future__ import annotations

import asyncio
import pathlib
import signal

from absl import flags

from epo_jax import command_line
from epo_jax.errors import UserError
from epo_jax.report.console import say
from epo_jax.report.page.run_page import RunPage
from epo_jax.report.page.watch import Watched, serving

RUN = flags.DEFINE_string("run", None, "The run's folder.")
EVALUATIONS = flags.DEFINE_list("evaluations", [], "Folders of evaluations to compare on the page, the first with each of the others.")
WATCH = flags.DEFINE_boolean("watch", False, "Serve the page to this machine and refresh it, instead of writing it.")
PORT = flags.DEFINE_integer("port", 8001, "With --watch: the port to listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535)


def main() -> None:
    if not RUN.value:
        raise UserError("say which run to show: --run=runs/alfshop.")
    page = RunPage(RUN.value, [pathlib.Path(folder) for folder in EVALUATIONS.value])
    if WATCH.value:
        asyncio.run(watch(page, PORT.value))
    else:
        path = page.write()
        say(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")


async def watch(page: RunPage, port: int) -> None:
    """Serves until Ctrl-C or SIGTERM. Raises `UserError` where there is no run."""
    asked_to_stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_stop.set)
    watched = Watched(page)
    await watched.newest()
    async with serving(watched, port) as address:
        print(f"{address} shows {page.folder}; Ctrl-C ends it", flush=True)
        await asked_to_stop.wait()


if __name__ == "__main__":
    command_line.run(main)
