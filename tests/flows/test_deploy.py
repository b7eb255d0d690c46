from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(180)]

_FLOWS = {"ingest", "build_memory", "retrain", "evaluate", "end_to_end"}


@pytest.fixture(scope="module")
def server(lab: Any) -> Iterator[str]:
    """Prefect's server on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1"]
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=lab.environment | quiet,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    api = f"http://127.0.0.1:{port}/api"
    try:
        wait_for(lambda: is_up(f"{api}/health"), process)
        yield api
    finally:
        stop(process)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(condition: Any, process: subprocess.Popen[Any]) -> Any:
    for _ in range(240):
        if found := condition():
            return found
        assert process.poll() is None, "the process ended"
        time.sleep(0.5)
    pytest.fail("nothing happened in two minutes")


def stop(process: subprocess.Popen[Any]) -> None:
    os.killpg(process.pid, 15)
    process.wait(timeout=30)


def deployments(api: str) -> dict[str, Any]:
    """By name of the flow."""
    from prefect.client.orchestration import PrefectClient

    async def read() -> dict[str, Any]:
        async with PrefectClient(api) as client:
            found = await client.read_deployments()
            flows = {one.flow_id: await client.read_flow(one.flow_id) for one in found}
            return {flows[one.flow_id].name: one for one in found}

    return asyncio.run(read())


def test_flows_are_registered_with_schedule_and_parameters(lab: Any, server: str) -> None:
    arguments = ["deploy", "smoke", "--cron", "ingest=0 2 * * *", "--set", "min_success=0.25"]
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.cli.main", *arguments],
        env=lab.environment | {"PREFECT_API_URL": server},
        cwd=lab.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        found = wait_for(lambda: (seen := deployments(server)).keys() >= _FLOWS and seen, process)
    finally:
        stop(process)
    assert set(found) == _FLOWS
    assert [s.schedule.cron for s in found["ingest"].schedules] == ["0 2 * * *"]
    assert found["retrain"].schedules == []
    for one in found.values():
        assert one.name == "smoke"
        assert one.parameters["config"]["min_success"] == 0.25
        schema = one.parameter_openapi_schema
        assert schema["definitions"]["RunConfig"]["additionalProperties"] is False
