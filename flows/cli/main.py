"""`racm3`: an error is one sentence; exits 0 done, 1 failed, 2 usage, 3 something found wrong."""

from __future__ import annotations

import atexit
import os
import sys
from typing import Any, NoReturn

from flows.environment import prepare_environment

__all__ = ["main"]

_FAILED, _WRONG, _INTERRUPTED = 1, 3, 130


def main() -> NoReturn:
    """Runs one command and ends the process with its code."""
    given = sys.argv[1:]
    debug = "--debug" in given
    try:
        prepare_environment()
        _run([one for one in given if one != "--debug"])
    except SystemExit as left:  # how the parser of the command line ends
        _leave(left.code if isinstance(left.code, int) else int(left.code is not None))
    except KeyboardInterrupt:
        _fail("interrupted; run again to go on", _INTERRUPTED)
    except BaseException as error:
        if debug:
            raise
        _fail(_sentence(error), _code(error))
    _leave(0)


def _run(arguments: list[str]) -> None:
    from flows.cli.app import app

    command: Any = app
    command(args=arguments, prog_name="racm3", standalone_mode=True)


def _code(error: BaseException) -> int:
    from pipelines.errors import PipelineError
    from storage_schemas.errors import StorageError

    if isinstance(error, PipelineError):
        return error.exit_code
    return _WRONG if isinstance(error, StorageError) else _FAILED


def _sentence(error: BaseException) -> str:
    from pipelines.errors import PipelineError
    from storage_schemas.errors import StorageError

    text = " ".join(str(error).split())
    if isinstance(error, PipelineError | StorageError | ValueError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def _fail(sentence: str, code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.write(f"racm3: {sentence}\n")
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends the process at once, once what must be ended is ended.

    A thread of a C++ library that is still at work would abort a process that takes its time
    ("terminate called without an active exception") and put its code in the place of ours.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code != _INTERRUPTED:  # threads of an interrupted run still wait for a worker
        atexit._run_exitfuncs()  # Prefect's server and Ray are ended here
    os._exit(code)


if __name__ == "__main__":
    main()
