"""What the server is asked in its tests."""

from __future__ import annotations

from epo_jax.serve.server import Server


def task(number: int) -> list[dict[str, str]]:
    places = ("desk", "shelf", "bed", "drawer", "cabinet", "fridge", "sofa", "table")
    first, second = places[number % 8], places[number // 8 % 8]
    text = f"You are in the middle of a room. You see a {first} 1, a {second} 2.\nYour task is to: put some mug {number} on {second}."
    return [{"role": "user", "content": text}]


DIALOGUE = [*task(3), {"role": "assistant", "content": "Thought: keep searching."}, {"role": "user", "content": "Agent1's look\nNothing happens."}]


def ask(server: Server, **options) -> dict:
    return {"model": server.model_name, "messages": task(1), "temperature": 0, "max_tokens": 24, **options}
