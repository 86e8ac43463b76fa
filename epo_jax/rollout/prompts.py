"""The words around an episode: instruction, worked example, and how an action is told back to the strategist.

The texts lie with their environment, in `envs/<name>/prompts/`: `strategist.txt` (instruction), `example.txt` (one worked
conversation) and `brief.txt` (for models too small to use either). `actor.txt` and `actor_example.txt` are the same for an actor that
is a language model. The roles are the published ones: instruction with the example, an "OK" that nobody trains on, then the task;
afterwards `Agent1's {action}` and what followed.

A policy that acts itself (StepAgent; rollout/acting.py) reads `agent.txt` and the actor's example, and afterwards only what followed: it knows what
it did.
"""

from __future__ import annotations

import dataclasses
import importlib.resources

from epo_jax.errors import UserError

ACKNOWLEDGEMENT = "OK"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The fixed texts of one environment's strategist. An empty instruction means that the task comes first.

    acts: the policy acts itself. thinks: it says a thought before its action, as in "Thought: …" and, on the next line, "Action: …".
    """

    instruction: str
    turn: str = "Agent1's {action}\n{observation}"
    acts: bool = False
    thinks: bool = False

    def opening(self, observation: str) -> list[dict[str, str]]:
        """The messages before the first strategy."""
        task = {"role": "user", "content": observation}
        if not self.instruction:
            return [task]
        return [
            {"role": "user", "content": self.instruction},
            {"role": "assistant", "content": ACKNOWLEDGEMENT},
            task,
        ]

    def after(self, action: str, observation: str) -> str:
        """The message that follows a strategy: what the actor did and what it saw."""
        if self.acts:
            return observation
        # Not str.format: the action and the observation may hold braces.
        before, _, between = self.turn.partition("{action}")
        return before + action + between.removesuffix("{observation}") + observation

    def demonstrated(self, strategy: str, action: str) -> str:
        """What an expert's turn says to who imitates it: its strategy, or where the policy acts itself its action."""
        if not self.acts:
            return strategy
        return f"{strategy}\nAction: {action}" if self.thinks else action


def load(environment: str, style: str) -> Prompts:
    """The prompts of an environment in a style: `full` (instruction and example) or `brief`; `act` and `act_brief` for a policy that acts itself."""
    folder = importlib.resources.files(f"envs.{environment}") / "prompts"
    if style == "act":
        if not (folder / "agent.txt").is_file():
            raise UserError(f"{environment} has no instruction for a policy that acts itself: set environments.{environment}.prompt to act_brief.")
        return Prompts(
            f"{(folder / 'agent.txt').read_text().strip()}\n\n{(folder / 'actor_example.txt').read_text().strip()}", acts=True, thinks=True
        )
    if style == "act_brief":
        return Prompts((folder / "brief.txt").read_text().strip(), acts=True)
    if style == "full":
        instruction = (folder / "strategist.txt").read_text().strip()
        example = (folder / "example.txt").read_text().strip()
        return Prompts(instruction=f"{instruction}\n\n{example}")
    if style == "brief":
        return Prompts(instruction=(folder / "brief.txt").read_text().strip(), turn="{action}\n{observation}")
    raise UserError(f"environment.prompt is {style!r}: it must be full or brief, or for a policy that acts itself act or act_brief.")


def actor_opening(environment: str, style: str) -> list[dict[str, str]]:
    """What an actor that is a language model reads before the task, by style: `full` (instruction, example, "OK") or `brief` (nothing)."""
    if style == "brief":
        return []
    if style != "full":
        raise UserError(f"an actor's prompt is {style!r}: it must be full or brief.")
    folder = importlib.resources.files(f"envs.{environment}") / "prompts"
    missing = [name for name in ("actor.txt", "actor_example.txt") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{environment} has no prompts/{missing[0]}: an actor that is a language model needs one, or the prompt brief.")
    instruction, example = ((folder / name).read_text().strip() for name in ("actor.txt", "actor_example.txt"))
    return [{"role": "user", "content": f"{instruction}\n\n{example}"}, {"role": "assistant", "content": ACKNOWLEDGEMENT}]
