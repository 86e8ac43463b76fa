"""A worker process of workers.py: runs environments and nothing else, neither JAX nor a model. It ends when its connection does.

    python -m epo_jax.rollout.worker DESCRIPTOR

It hears (number, "begin", (name, where its class is, options, task)), (number, "step", action) and (number, "close", None); it answers the first two with
("view", View), or ("failed", words) where the environment raised, or ("refused", words) where a person must mend something.
"""

from __future__ import annotations

import functools
import sys
from multiprocessing.connection import Connection

import envs
from epo_jax.errors import UserError
from epo_jax.rollout.environments import EnvironmentFailed, RunningHere


def main() -> None:
    connection, running = Connection(int(sys.argv[1])), dict[int, RunningHere]()
    while True:
        try:
            number, what, given = connection.recv()
        except EOFError:
            return
        if what == "close":
            running.pop(number, None)
            continue
        try:
            if what == "begin":
                name, place, options, task = given
                if place is not None:  # a configuration may have registered it, which no worker reads
                    envs.REGISTRY[name] = place
                running[number] = RunningHere(functools.partial(envs.make, name, **options), task)
                answer = "view", running[number].view
            else:
                answer = "view", running[number].step_now(given)
        except EnvironmentFailed as error:
            answer = "failed", str(error)
        except UserError as error:
            answer = "refused", str(error)
        connection.send(answer)


if __name__ == "__main__":
    main()
