"""Arguments of a small call of an image pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from support.recipe import drawing, rand

HEIGHT, WIDTH = 16, 24


def arguments(**changes: Any) -> dict[str, Any]:
    usual = {
        "prompt": "a red circle",
        "control_image": drawing(1, WIDTH, HEIGHT),
        "num_inference_steps": 3,
        "sampler": "euler_a",
        "seed": 5,
        "output_type": "latent",
    }
    return {**usual, **changes}


def guided_call(**changes: Any) -> dict[str, Any]:
    """Return the arguments of a guided call of a tiny model, which its reference takes too."""
    usual = {
        "prompt": "a red circle on a blue background",
        "negative_prompt": "grey",
        "control_image": drawing(4, 96, 64),
        "control_scale": 0.8,
        "num_inference_steps": 2,
        "guidance_scale": 4.0,
        "height": 64,
        "width": 96,
        "seed": 3,
    }
    return {**usual, **changes}


def embeds(count: int = 1, start: int = 0) -> dict[str, np.ndarray]:
    return {
        "prompt_embeds": rand(start, count, 7, 16),
        "negative_prompt_embeds": rand(start + 1, count, 7, 16),
        "pooled_prompt_embeds": rand(start + 2, count, 5),
        "negative_pooled_prompt_embeds": rand(start + 3, count, 5),
    }
