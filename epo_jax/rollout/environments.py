"""An environment as a player uses it: in this process, or in one of a pool of worker processes (workers.py).

Only environments of one seat are played through this; the parties of a conversation (two_seats.py) cost next to nothing. Workers import it, so it
knows nothing of JAX.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import envs
from epo_jax.errors import UserError

if TYPE_CHECKING:
    from epo_jax.rollout.tasks import TaskSet


class View(NamedTuple):
    """What a player sees of an environment after its start or a step; the fields are those of `envs.Environment`."""

    observation: str
    reward: float
    done: bool
    info: dict[str, Any]
    progress: float | None
    outcome: float
    admissible: list[str]
    task_id: str
    task_type: str | None


class EnvironmentFailed(Exception):
    """An environment raised, or the process that it ran in died; the message says which."""


class Running(Protocol):
    """One environment in the middle of an episode."""

    view: View

    async def step(self, action: str) -> View:
        """Raises `EnvironmentFailed`."""
        ...

    def close(self) -> None: ...


class Environments(Protocol):
    """Where environments run."""

    async def begin(self, task_set: TaskSet, task: Any) -> Running:
        """An environment of the task set at the start of a task. Raises `EnvironmentFailed`."""
        ...


class Here:
    """In this process, one step after the other."""

    async def begin(self, task_set: TaskSet, task: Any) -> RunningHere:
        return RunningHere(task_set.make, task)


class RunningHere:
    def __init__(self, make: Callable[[], envs.Environment], task: Any) -> None:
        with _told():
            self._environment = make()
            self.view = self._seen(self._environment.reset(task), 0.0, False, {})

    async def step(self, action: str) -> View:
        return self.step_now(action)

    def step_now(self, action: str) -> View:
        with _told():
            self.view = self._seen(*self._environment.step(action))
        return self.view

    def close(self) -> None:
        pass

    def _seen(self, observation: str, reward: float, done: bool, info: dict[str, Any]) -> View:
        environment = self._environment
        return View(
            observation, reward, done, info, environment.progress(), environment.outcome, list(environment.admissible),
            environment.task_id, environment.task_type,
        )  # fmt: skip


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Whatever an environment raises is its failure, but for what a person can mend."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise EnvironmentFailed(f"{type(error).__name__}: {error}") from error
