"""How many requests a second the server answers: many clients at once against one at a time.

    python tools/bench_serve.py [--checkpoint=mini] [--clients=64] [--requests=256] [--json]
    python tools/bench_serve.py --url=http://127.0.0.1:8000/v1      (a server that runs already)

The requests are openings of generated ALFWorld households, each with a seed of its own, sampled at temperature 1. Both ways are run once
before they are measured, so that no compilation counts. Without --url the server lives in this process, and its clients share its cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402
from rich.table import Table  # noqa: E402

import envs  # noqa: E402
from epo_jax import command_line, strategist as strategists  # noqa: E402
from epo_jax.errors import UserError  # noqa: E402
from epo_jax.report.console import console  # noqa: E402
from epo_jax.rollout import prompts  # noqa: E402
from epo_jax.serve.server import Options, in_background  # noqa: E402
from tools import measurement  # noqa: E402

Messages = list[dict[str, str]]


def main(arguments: list[str] | None = None) -> int:
    parser = command_line.argument_parser("bench_serve.py", __doc__)
    parser.add_argument("--checkpoint", default="mini", help="what to serve, as in python -m epo_jax.serve")
    parser.add_argument("--url", help="a server that runs already, as http://127.0.0.1:8000/v1; its key from OPENAI_API_KEY")
    parser.add_argument("--clients", type=int, default=64, help="requests at once")
    parser.add_argument("--requests", type=int, default=256, help="requests in all with many clients; a quarter of them one at a time")
    parser.add_argument("--max_tokens", type=int, default=32, help="of each reply")
    parser.add_argument("--slots", type=int, default=64, help="of the server: replies sampled at once")
    return measurement.main(parser, arguments, measure, show)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """{"alone": ..., "together": ..., "ratio": of requests a second}. Raises `UserError` where the server refuses, or there is none."""
    with contextlib.ExitStack() as stack:
        url = options.url
        if url is None:
            strategist = strategists.from_checkpoint(options.checkpoint)
            url = f"{stack.enter_context(in_background(strategist, Options(slots=options.slots, max_context=1024))).url}/v1"
        try:
            return asyncio.run(_measure(url, openings(64), clients=options.clients, requests=options.requests, max_tokens=options.max_tokens))
        except aiohttp.ClientError as error:
            raise UserError(f"no answer from {url} ({error}): is the server running?") from error


def openings(number: int) -> list[Messages]:
    """The first messages of so many households."""
    environment = envs.make("alfworld")
    return [prompts.load("alfworld", "brief").opening(environment.reset(task)) for task in environment.tasks("generated:eval")[:number]]


async def _measure(url: str, dialogues: list[Messages], *, clients: int, requests: int, max_tokens: int) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"} if os.environ.get("OPENAI_API_KEY") else {}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def one(number: int) -> tuple[float, int]:
            asked = {"messages": dialogues[number % len(dialogues)], "temperature": 1, "seed": number, "max_tokens": max_tokens}
            begin = time.perf_counter()
            async with session.post(f"{url}/chat/completions", json=asked) as response:
                body = await response.json()
                if response.status != 200:
                    raise UserError(f"the server answered {response.status}: {body['error']['message']}")
            return time.perf_counter() - begin, body["usage"]["completion_tokens"]

        async def run(at_once: int, total: int) -> dict[str, float]:
            waiting = iter(range(total))
            heard: list[tuple[float, int]] = []

            async def client() -> None:
                for number in waiting:
                    heard.append(await one(number))

            begin = time.perf_counter()
            await asyncio.gather(*(client() for _ in range(at_once)))
            seconds = time.perf_counter() - begin
            latencies = sorted(latency for latency, _ in heard)
            return {
                "clients": at_once,
                "requests": total,
                "requests_per_second": total / seconds,
                "tokens_per_second": sum(tokens for _, tokens in heard) / seconds,
                "median_seconds": statistics.median(latencies),
                "p95_seconds": float(np.percentile(latencies, 95)),
            }

        few = max(1, requests // 4)
        await run(1, min(few, 8))
        await run(clients, requests)
        alone, together = await run(1, few), await run(clients, requests)
    return {"alone": alone, "together": together, "ratio": together["requests_per_second"] / alone["requests_per_second"]}


def show(result: dict[str, Any]) -> None:
    table = Table("clients", "requests", "requests/s", "tokens/s", "median, s", "95 %, s")
    for row in (result["alone"], result["together"]):
        table.add_row(
            str(row["clients"]), str(row["requests"]), f"{row['requests_per_second']:.2f}", f"{row['tokens_per_second']:.1f}",
            f"{row['median_seconds']:.2f}", f"{row['p95_seconds']:.2f}",
        )  # fmt: skip
    console.print(table)
    print(f"{result['ratio']:.1f} times as many requests a second with {result['together']['clients']} clients as with one")


if __name__ == "__main__":
    sys.exit(main())
