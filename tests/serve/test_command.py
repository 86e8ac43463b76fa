"""The command: what it prints, what it refuses, and how it stops."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "epo_jax.serve"]


def refused(*arguments: str) -> str:
    result = subprocess.run([*COMMAND, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    return result.stderr


@pytest.mark.slow
def test_what_it_refuses() -> None:
    assert "say what to serve" in refused()
    assert "NO_SUCH_KEY is empty or not set" in refused("--checkpoint=mini", "--api_key_variable=NO_SUCH_KEY")
    assert "no model weights at nowhere" in refused("--checkpoint=nowhere")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_and_stops_when_asked_to(number: signal.Signals) -> None:
    """A stream that runs when the signal comes is told to its end."""
    command = [*COMMAND, "--checkpoint=mini", "--port=0", "--host=0.0.0.0", "--decode_chunk=1", "--slots=2"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        port = re.search(r"at http://0\.0\.0\.0:(\d+)/v1", process.stdout.readline())[1]
        asked = {"messages": [{"role": "user", "content": "go"}], "max_tokens": 200, "temperature": 2, "stream": True}
        url, body = f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(asked).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            assert response.readline().startswith(b"data: {")
            process.send_signal(number)
            assert response.read().endswith(b"data: [DONE]\n\n")
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0 and "stopping" in stdout and "Traceback" not in stderr
    assert "anyone who reaches 0.0.0.0 can use this server" in stderr
