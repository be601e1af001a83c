"""Arguments, bundles and denoisers that the pipeline refuses, each with one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnext.bundle.files import MANIFEST
from controlnext.errors import BundleError, InputError, WorkError
from controlnext.runtime import Pipeline
from support.fake_bundle import write_fake_bundle
from support.image_calls import arguments, embeds
from support.recipe import drawing, rand


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"height": 20},
            r"height is 20; height and width must be multiples of 8 \(the nearest are 16 and 24",
        ),
        ({"width": 0}, "width is 0"),
        ({"width": -8}, "width is -8"),
        ({"width": 16.0}, "width is 16.0"),
        (
            {"control_image": drawing(1, 24, 16).resize((24, 7))},
            r"the height of the control image is 7; .* must be multiples of 8 \(the smallest is 8\)",
        ),
        ({"control_image": None}, "no control image was given"),
        ({"control_image": [drawing(1, 24, 16)] * 3}, "3 control images were given for one prompt"),
        ({"control_image": np.full((16, 24, 3), np.nan)}, "image has values from nan"),
        ({"control_scale": float("nan")}, "control_scale is nan; it must be a finite number"),
        ({"control_scale": [1.0, 2.0]}, r"control_scale has shape \(2,\) for 1 prompts"),
        ({"control_scale": "strong"}, "control_scale is 'strong'; give numbers"),
        ({"control_scale": "1"}, "control_scale is '1'; give numbers"),
        ({"control_scale": None}, "control_scale is None; give numbers"),
        ({"control_scale": True}, "control_scale is True; give numbers"),
        ({"latents": np.full((1, 4, 2, 3), 1j)}, "latents is array.*; give numbers"),
        ({"control_end": True}, "control_end is True; it must be a number above"),
        ({"guidance_end": True}, "guidance_end is True"),
        ({"guidance_scale": True}, "guidance_scale is True"),
        (
            {"control_start": 0.6, "control_end": 0.5},
            "control_end is 0.5; .* above `control_start`, which is 0.6",
        ),
        ({"control_end": 1.5}, "control_end is 1.5; it must be a number above `control_start`"),
        ({"guidance_end": 1.5}, "guidance_end is 1.5; it must be a number from 0 to 1"),
        ({"guidance_end": -0.1}, "guidance_end is -0.1"),
        ({"guidance_end": float("nan")}, "guidance_end is nan"),
        ({"guidance_end": "half"}, "guidance_end is 'half'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": -4}, "num_inference_steps is -4"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high'"),
        ({"seed": 2**64}, "seed is 18446744073709551616; it must be an integer from"),
        ({"seed": 1.5}, "seed is 1.5; it must be an integer"),
        ({"sampler": "plms"}, "unknown sampler 'plms' for Stable Diffusion XL; accepted: unipc, euler"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0; it must be an integer from 1 to 10000"),
        ({"num_images_per_prompt": 2**64}, "it must be an integer from 1 to 10000"),
        ({"height": 2**64}, "height is 18446744073709551616; this model supports at most 65536"),
        ({"guidance_scale": 10**400}, "guidance_scale is 1000"),
        ({"output_type": "jpg"}, "unknown output_type 'jpg'; accepted: pil, np, latent"),
        ({"latents": rand(0, 1, 4, 3, 3), "height": 16}, r"latents have shape .*, expected \(1, 4, 2, 3\)"),
        ({"latents": rand(0, 2, 4, 2, 3)}, r"expected \(1, 4, 2, 3\)"),
        ({"latents": rand(0, 4, 2, 3)}, "expected .batch, channels, height/8, width/8"),
        ({"latents": np.full((1, 4, 2, 3), np.nan)}, "latents has 24 values of 24 that are NaN"),
        ({"latents": [[1, 2], [3]]}, "latents is not an array of numbers"),
        ({"prompt": None}, "no prompt was given; set `prompt` or `prompt_embeds`"),
        ({"prompt": 3}, "prompt is 3; it must be a text or a list of texts"),
        ({"prompt": []}, "prompt is .]; it must be a text"),
        ({"prompt": ["a", None]}, "it must be a text or a list of texts"),
        ({"prompt_embeds": rand(0, 1, 7, 16)}, "both prompt and prompt_embeds were given"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts for a batch of 1"),
        (
            {"negative_prompt": "a", "negative_prompt_embeds": rand(0, 1, 7, 16)},
            "both negative_prompt and negative_prompt_embeds were given",
        ),
        (
            {"negative_prompt_embeds": rand(0, 1, 8, 16)},
            "negative_prompt_embeds was given without negative_pooled_prompt_embeds",
        ),
        (
            {"pooled_prompt_embeds": rand(0, 2, 5)},
            r"pooled_prompt_embeds has shape \(2, 5\), expected \(1, 5\)",
        ),
    ],
)
def test_bad_arguments_are_one_clear_error(pipe: Pipeline, changes: dict[str, Any], message: str) -> None:
    """With the argument at fault: of two that do not go together one, of a missing one its name."""
    with pytest.raises(InputError, match=message) as caught:
        pipe.stream(**arguments(**changes))
    assert "\n" not in str(caught.value)
    assert caught.value.argument in {*changes, "height", "prompt", "negative_pooled_prompt_embeds"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt": "a red circle"},
            "has no text encoders; give `prompt_embeds` and, with guidance, `negative_prompt_embeds`",
        ),
        ({**embeds(), "negative_prompt_embeds": None}, "has no text encoders"),
        ({**embeds(), "pooled_prompt_embeds": None}, "without pooled_prompt_embeds; this model needs both"),
        ({**embeds(), "prompt_embeds": rand(0, 1, 7, 12)}, r"\(1, 7, 12\), expected \(batch, tokens, 16\)"),
        ({**embeds(), "prompt_embeds": rand(0, 7, 16)}, r"shape \(7, 16\), expected"),
        ({**embeds(), "prompt_embeds": rand(0, 1, 9, 16)}, "the prompt's .1, 9, 16.; they must agree"),
        ({**embeds(), "prompt_embeds": np.full((1, 7, 16), np.inf)}, "prompt_embeds has 112 values of 112"),
        ({**embeds(), "pooled_prompt_embeds": rand(0, 1, 4)}, r"\(1, 4\), expected \(1, 5\)"),
    ],
)
def test_bad_embeddings_are_one_clear_error(bare: Pipeline, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bare.stream(**arguments(**{"prompt": None, **changes}))


def test_a_denoiser_that_overflows_is_named(bare: Pipeline) -> None:
    huge = {**embeds(), "prompt_embeds": np.full((1, 7, 16), 3e38)}
    with pytest.raises(WorkError, match="output at step 1 of 3 is not finite: it overflows"):
        bare(**arguments(prompt=None, **huge))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"bundle": None}, "bundle is None; give the path of a directory"),
        ({"bundle": 3}, "bundle is 3; give the path"),
        ({"device": None}, "unknown device None; accepted: auto, cpu, cuda"),
        ({"device": 0}, "unknown device 0; accepted"),
        ({"cache": "no"}, "cache is 'no'; it must be True or False"),
        ({"offload": 1}, "offload is 1; it must be True or False"),
    ],
)
def test_loading_refuses_arguments_of_other_types(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Pipeline.load(**{"bundle": tmp_path, **given})
    assert caught.value.argument in given


def test_integers_of_numpy_are_integers(pipe: Pipeline) -> None:
    given = arguments(num_inference_steps=4, output_type="np")
    plain = pipe(**given, cache_interval=1).images
    np.testing.assert_array_equal(pipe(**given, cache_interval=np.int64(1)).images, plain)


def test_a_closed_pipeline_says_so(tmp_path: Path) -> None:
    with Pipeline.load(write_fake_bundle(tmp_path / "bundle"), cache=False) as pipeline:
        pipeline(**arguments())
    with pytest.raises(InputError, match="is closed; load it again"):
        pipeline(**arguments())


def test_loading_finds_what_is_missing_or_truncated_anywhere(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    weights = path / "text_encoder_2" / "model.onnx.data"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4])
    with pytest.raises(BundleError, match=r"text_encoder_2/model\.onnx\.data has .*sha256 .*truncated"):
        Pipeline.load(path)
    weights.unlink()
    with pytest.raises(BundleError, match=r"text_encoder_2/model\.onnx\.data is missing"):
        Pipeline.load(path)


def test_loading_refuses_an_unknown_family(tmp_path: Path) -> None:
    path = write_fake_bundle(tmp_path / "bundle")
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "family": "sd9"}))
    with pytest.raises(InputError, match="unknown model 'sd9'; accepted"):
        Pipeline.load(path)
