"""The files of one checkpoint: what they must be (sizes and checksums), whether they still are, and how they come and go.

A checkpoint's folder holds `checkpoint.json`, which lists every file under `state/` with its size and CRC-32, beside the run's record.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import pathlib
import re
import shutil
import zlib
from typing import Any

Record = dict[str, Any]
FORMAT = 2  # 1 had no checksum of checkpoint.json itself
READERS = 8  # files that are read at once, for their checksums: neither reading nor adding up holds the interpreter's lock
BLOCK = 1 << 20  # bytes of each of them


def contents(folder: pathlib.Path, record: Record, step: int) -> bytes:
    """What `checkpoint.json` says of the files under `folder`/state and of the run, with a checksum of its own."""
    files = sorted(path for path in (folder / "state").rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    checksums = _checksums(folder, list(sizes))
    said = {"step": step, "record": record, "files": {name: [size, checksums[name]] for name, size in sizes.items()}}
    return json.dumps({"format": FORMAT, "checksum": _checksum_of(said), **said}, indent=1).encode()


def read_contents(path: pathlib.Path) -> dict[str, Any]:
    """What `contents` said: "step", "record" and "files". Raises OSError or ValueError where it is missing or not as it was written."""
    found = json.loads((path / "checkpoint.json").read_bytes())
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict) or not isinstance(found.get("record"), dict):
        raise ValueError("checkpoint.json is not one of ours")
    said = {name: found.get(name) for name in ("step", "record", "files")}
    if found.get("format") not in (1, FORMAT) or (found["format"] == FORMAT and found.get("checksum") != _checksum_of(said)):
        raise ValueError("checkpoint.json was altered")
    return said


def size_damage(path: pathlib.Path) -> str | None:
    """What can be seen to be wrong with a checkpoint's files without reading them, or None."""
    try:
        files = read_contents(path)["files"]
    except (OSError, ValueError):
        return "its checkpoint.json is missing, altered or cannot be read"
    for name, (size, _) in files.items():
        try:
            actual = (path / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if actual != size:
            return f"{name} has {actual} of {size} bytes"
    return None


def damage_of(path: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    damage = size_damage(path)
    if damage is not None:
        return damage
    try:
        said = read_contents(path)["files"]
        expected = {name: checksum for name, (_, checksum) in said.items() if checksum is not None}  # runs of earlier versions left out large files
        actual = _checksums(path, list(expected))
    except OSError as error:
        return f"{error.filename or 'a file'} cannot be read: {error.strerror}"
    return next((f"{name} was altered" for name in expected if actual[name] != expected[name]), None)


def _checksums(folder: pathlib.Path, names: list[str]) -> dict[str, int]:
    with concurrent.futures.ThreadPoolExecutor(READERS) as readers:
        return dict(zip(names, readers.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: pathlib.Path) -> int:
    checksum, block = 0, memoryview(bytearray(BLOCK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            checksum = zlib.crc32(block[:size], checksum)
    return checksum


def _checksum_of(said: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def write_and_sync(path: pathlib.Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: pathlib.Path) -> None:
    """Delete a step; renamed first, so that a kill in the middle leaves nothing that looks like a checkpoint."""
    if not path.exists():
        return
    doomed = path.with_name(".deleted-" + path.name)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def why_not_written(error: BaseException) -> str | None:
    """The reason in words if the file system refused (orbax wraps it in other exceptions), else None."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return "the disk is full, make room"
        if re.search(r"no space left|disk quota exceeded|file too large", str(current), re.IGNORECASE):
            return "the disk is full, make room"
        if isinstance(current, TimeoutError):  # an OSError too, and without words of its own
            return "the processes of the run, or the file system, took too long; see that all of them share this folder, and try the same command again"
        if isinstance(current, OSError):
            return f"{current.strerror or current}, choose another folder or mend its permissions"
        waiting += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]
    return None
