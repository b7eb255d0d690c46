"""What the tests of several parts of the pipeline read back."""

from __future__ import annotations

import struct

import pytest


@pytest.fixture(scope="session")
def read_events():
    """Reads a folder of TensorBoard events: every scalar as (tag, step, value), in order.

    Only what TensorBoard would show: a process that starts at a step takes back what earlier ones
    wrote for it and for later steps.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    def records(path):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            body = data[at + 12 : at + 12 + length]
            (check,) = struct.unpack_from("<I", data, at + 12 + length)
            assert check == masked_crc32c(body), path
            yield Event.FromString(body)
            at += 16 + length

    def read(folder):
        shown = []
        for path in sorted(folder.iterdir()):
            for event in records(path):
                if event.HasField("session_log"):
                    shown = [one for one in shown if one[1] < event.step]
                shown += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        return shown

    return read
