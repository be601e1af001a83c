"""Open, feed and check the denoiser of a fake bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from controlnext.bundle.reader import read_manifest
from controlnext.engines import Engine, open_engine
from support.fake_bundle import fake_denoiser
from support.recipe import rand


def open_unet(bundle: Path, backend: str, **options: Any) -> Engine:
    """Open the denoiser of a fake bundle."""
    return open_engine(bundle, read_manifest(bundle), "unet", backend, **options)


def unet_feed(batch: int = 2, height: int = 3, width: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Return inputs of the denoiser of a fake bundle."""
    return {
        "sample": rand(seed, batch, 4, height, width),
        "timestep": np.full(batch, 500 + seed, np.float32),
        "encoder_hidden_states": rand(seed + 1, batch, 7, 16),
        "text_embeds": rand(seed + 2, batch, 5),
        "time_ids": rand(seed + 3, batch, 6),
        "control_image": rand(seed + 4, 1, 3, 8 * height, 8 * width, kind="uniform"),
        "control_scale": np.full(batch, 0.5, np.float32),
    }


def check_unet(engine: Engine, feed: dict[str, np.ndarray]) -> None:
    """Run the denoiser and compare its output with the fake one."""
    outputs = engine.run(feed)
    assert outputs["noise_pred"].dtype == np.float32
    np.testing.assert_array_equal(outputs["noise_pred"], fake_denoiser(feed).astype(np.float32))
