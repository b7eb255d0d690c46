"""Facts of this machine: where the store is, what executes. Never part of a fingerprint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from flows.environment import default_cache

__all__ = ["Settings"]


class Settings(BaseSettings):
    """Read from `RACM3_*`; lists and tables as JSON."""

    model_config = SettingsConfigDict(env_prefix="RACM3_", frozen=True, extra="ignore")

    store: str = Field("store", description="folder of the store")
    executor: Literal["ray", "local"] = Field("ray", description="where shards are computed")
    workers: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="processes of the executor"
    )
    ray_address: str | None = Field(
        None, description="of a running Ray cluster; none: one is started on this machine"
    )
    gpus_per_actor: float = Field(0.0, ge=0, description="GPUs (or a share of one) per process")
    cache: Path = Field(
        default_factory=default_cache, description="folder of what can be made again"
    )
    allow_hosts: tuple[str, ...] = Field(
        (), description="loopback hosts that may be fetched from, such as 127.0.0.1:8080"
    )
    host_map: dict[str, str] = Field(
        default_factory=dict, description="host of a URL -> address:port that answers for it"
    )
