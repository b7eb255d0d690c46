"""Prefect's own server, which it starts for a flow: it ends with this process, however that ends.

Prefect ends the server when the interpreter exits. A killed interpreter does not exit: the server
would stay, with its memory, its port and its hold on the database.
"""

from __future__ import annotations

import subprocess
from typing import Any

from prefect.server.api.server import SubprocessASGIServer

__all__ = ["TiedServer", "tie_server"]

_GUARD = 'trap "" INT HUP TERM; read -r _; kill "$0"'
"""Reads from a pipe that nobody writes to and only this process holds: it ends with us."""


class TiedServer(SubprocessASGIServer):
    """Prefect's server with a small guard beside it, which ends it when we are gone."""

    _guard: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """Ends the server, then the guard, which has nothing to watch any more."""
        super().stop()
        self._dismiss()

    def _run_uvicorn_command(self) -> subprocess.Popen[Any]:
        self._dismiss()
        server = super()._run_uvicorn_command()
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, str(server.pid)],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        return server

    def _dismiss(self) -> None:
        if self._guard is None:
            return
        self._guard.kill()
        self._guard.communicate()
        self._guard = None


def tie_server() -> None:
    """Makes the server that Prefect will start, if it starts one, a tied one.

    Prefect keeps one server object a process and takes the one that is there.
    """
    TiedServer()
