"""How every command of the project starts and fails: flags, one sentence for a mistake, and its exit code."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

from absl import app, flags, logging

from epo_jax.errors import UserError


def run(main: Callable[[], None]) -> None:
    """Parses the command line, calls `main()`, and turns a `UserError` into one sentence and its exit code."""

    def entry(arguments: list[str]) -> None:
        if len(arguments) > 1:
            _fail(f"unexpected argument {arguments[1]!r}: every option is written --name=value.")
        logging.set_verbosity(logging.WARNING)  # libraries tell of every file they write
        try:
            main()
        except UserError as error:
            _fail(str(error), error.exit_code)

    app.run(entry, flags_parser=_parse)


def argument_parser(program: str, documentation: str) -> argparse.ArgumentParser:
    """The parser of a command in tools/, whose --help is its module's documentation, examples included, and then its flags."""
    return argparse.ArgumentParser(prog=program, description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)


def config_value(holder: flags.FlagHolder):
    """The value of a `--config` flag; a missing or broken config file raises `UserError`."""
    config = holder.value
    if config is None:
        raise UserError("no configuration: say which one, as in --config=configs/alfshop.py.")
    try:
        config.keys()
    except (OSError, ImportError) as error:
        raise UserError(f"cannot read the configuration: {str(error).strip().splitlines()[-1].strip()}") from error
    return config


def _parse(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except (AttributeError, KeyError) as error:  # ml_collections: an override names no field of the config, or no section
        if any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # a mistake in the file itself, which its own lines tell best
        words = " ".join(str(error).replace("'\\'", "'").replace("\\'", "'").replace("\\n", " ").split())
        words = words.replace("' Did you mean", ". Did you mean")
        _fail(f"no such field in the configuration: {words.strip(chr(39) + chr(34))}")
    except (flags.Error, ValueError, TypeError) as error:
        told, _, raised = str(error).partition("Error whilst parsing config file:")
        if raised.strip():  # a config file's own error: what it came to is the last line
            told += raised.strip().splitlines()[-1].removeprefix("ValueError: ")
        _fail(" ".join(told.split()))
    raise AssertionError("unreachable")


def _fail(sentence: str, code: int = UserError.exit_code) -> None:
    print(f"epo_jax: {sentence}", file=sys.stderr)
    sys.exit(code)
