"""A process of a job of two: ADDRESS NUMBER SOURCE TARGET. Imports the model in SOURCE on a mesh of
both processes' devices and exports it to TARGET."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
from imports import imported

from rft_jax.hub.folder import raw_config
from rft_jax.hub.save import save_pretrained


def main(address: str, number: str, source: str, target: str) -> None:
    jax.distributed.initialize(address, 2, int(number))
    config, params = imported(Path(source), 1, 2, 2)
    assert not params["embedding"].is_fully_addressable
    raw = raw_config(Path(source))
    save_pretrained(params, config, Path(target), raw=raw, dtype="float32", max_shard_bytes=20_000)


if __name__ == "__main__":
    main(*sys.argv[1:])
