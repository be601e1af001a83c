"""Names of diffusers' pipelines that ours do not have, and what takes their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from types import MappingProxyType
from typing import ParamSpec, TypeVar

from controlnext.families.values import did_you_mean

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_OFFLOAD, _DEVICE = "Pipeline.load(..., offload=True)", "Pipeline.load(..., device=...)"
_PARTS = "there is none: the networks are graphs of the bundle"
_BY_ITSELF = "nothing: the graphs do it by themselves"
_SIZE = "nothing: it is the size of the result"
INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "scheduler": 'the call\'s sampler, such as sampler="euler"',
        "to": _DEVICE,
        "device": "backend",
        "dtype": "bundle.manifest.precision",
        "config": "bundle.manifest",
        "components": "bundle.manifest.graphs",
        "enable_model_cpu_offload": _OFFLOAD,
        "enable_sequential_cpu_offload": _OFFLOAD,
        "enable_vae_tiling": "the call's vae_tiling=True",
        "disable_vae_tiling": "the call's vae_tiling=False",
        "enable_vae_slicing": "nothing: images are decoded one by one",
        "enable_attention_slicing": _BY_ITSELF,
        "enable_xformers_memory_efficient_attention": _BY_ITSELF,
        "load_lora_weights": "add_lora",
        "unload_lora_weights": "remove_lora",
        "delete_adapters": "remove_lora",
        "set_adapters": 'the call\'s lora={"name": scale}',
        "fuse_lora": "`lora` of the export",
        "unfuse_lora": 'the call\'s lora={"name": scale}',
        "load_ip_adapter": "`ip_adapter` of the export",
        "set_ip_adapter_scale": "the call's ip_adapter_scale",
        "load_textual_inversion": "`textual_inversion` of the export",
        "encode_prompt": "the call's prompt",
        "set_progress_bar_config": "stream, which yields the steps",
        "progress_bar": "stream, which yields the steps",
        "safety_checker": "nothing: bundles have none",
        **dict.fromkeys(("unet", "transformer", "vae", "text_encoder", "text_encoder_2"), _PARTS),
        **dict.fromkeys(("tokenizer", "tokenizer_2", "controlnet", "image_processor"), _PARTS),
        "feature_extractor": _PARTS,
    }
)
"""Our own in place of the attributes of diffusers' pipelines, by name."""

ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        "controlnet_conditioning_scale": "control_scale",
        "control_guidance_start": "control_start",
        "control_guidance_end": "control_end",
        "cross_attention_kwargs": 'lora={"name": scale} for the scale of LoRAs',
        "clip_skip": "`clip_skip` of the export",
        "denoising_end": "stream, which gives the latents of every step",
        "denoising_start": "image and strength",
        "prompt_2": "prompt, which both text encoders get, or prompt_embeds",
        "negative_prompt_2": "negative_prompt, which both text encoders get, or negative_prompt_embeds",
        "eta": 'a sampler that adds noise, such as sampler="euler_a"',
        "return_dict": "nothing: a call returns an object with its results and latents",
        "guess_mode": "nothing: it is ControlNet's, not ControlNeXt's",
        "guidance_rescale": "nothing: guidance is not rescaled",
        **dict.fromkeys(("original_size", "target_size"), _SIZE),
        **dict.fromkeys(("negative_original_size", "negative_target_size"), _SIZE),
        **dict.fromkeys(("crops_coords_top_left", "negative_crops_coords_top_left"), "nothing: it is (0, 0)"),
        "motion_bucket_id": "nothing: it is that of the control's training",
        "fps": "that of the file: export_to_video of controlnext.runtime.media",
        "num_videos_per_prompt": "a call for each clip",
        "callback": "callback_on_step_end",
        "callback_steps": "callback_on_step_end, which is called after each",
    }
)
"""Our own in place of the arguments of a call of diffusers' pipelines, by name."""

CLIP_ARGUMENTS: Mapping[str, str] = MappingProxyType(
    {
        **ARGUMENTS,
        "guidance_scale": "max_guidance_scale, that of the last frame",
        **dict.fromkeys(("prompt", "negative_prompt"), "nothing: a clip is made of image and control_images"),
        "control_image": "control_images, an image for every frame",
    }
)
"""The same for a call that makes a clip."""

LOADING: Mapping[str, str] = MappingProxyType(
    {
        "variant": "a bundle of that precision",
        "export": "controlnext export",
        **dict.fromkeys(("providers", "device_map"), "device, backend and provider"),
        **dict.fromkeys(("provider_options", "session_options"), "threads, cache and offload"),
        **dict.fromkeys(("controlnet", "vae", "unet", "scheduler", "safety_checker"), _PARTS),
        "use_safetensors": "nothing: no weights of a bundle are pickled",
        "use_io_binding": "nothing: inputs that stay the same are bound always",
        "low_cpu_mem_usage": "offload=True",
        "slim": "nothing: graphs take every size",
        **dict.fromkeys(("resume_download", "proxies"), "nothing: the library of the hub does it by itself"),
        "custom_pipeline": "nothing: no code of a repository is run",
        "trust_remote_code": "nothing: no code of a repository is run",
    }
)
"""Our own in place of the arguments of ``from_pretrained`` in diffusers and optimum, by name."""


SHARING: Mapping[str, str] = MappingProxyType(
    {
        "license": "licence",
        **dict.fromkeys(
            ("safe_serialization", "max_shard_size", "variant"), "nothing: files are sent as they are"
        ),
        "push_to_hub": "the method push_to_hub",
        "commit_description": "commit_message",
    }
)
"""Our own in place of the arguments of ``push_to_hub`` and ``save_pretrained`` in diffusers, by name."""


def no_attribute(pipeline: object, name: str) -> AttributeError:
    """Return the error for an attribute that a pipeline does not have."""
    told = f"{type(pipeline).__name__} has no attribute {name!r}"
    if name in INSTEAD:
        told += f"; in place of diffusers' {name}: {INSTEAD[name]}"
    return AttributeError(told)


def check_arguments(
    function: str,
    given: Iterable[str],
    accepted: Iterable[str],
    instead: Mapping[str, str],
    whose: str = "diffusers' ",
) -> None:
    """Raise :class:`TypeError`, as Python does, for a name that is not accepted, with what helps.

    ``whose``: the names in ``instead`` are told as theirs.
    """
    known = [*accepted]
    for name in given:
        if name not in known:
            told = f"{function}() got an unexpected keyword argument {name!r}"
            if name in instead:
                told += f"; in place of {whose}{name}: {instead[name]}"
            else:
                told += did_you_mean(name, known)
            raise TypeError(told)


def tells_names(
    instead: Mapping[str, str],
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Have a method tell what takes the place of an argument that it does not have."""

    def decorate(call: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        accepted = tuple(inspect.signature(call).parameters)

        @wraps(call)
        def checked(*given: Parameters.args, **named: Parameters.kwargs) -> Result:
            check_arguments(f"{type(given[0]).__name__}.{call.__name__}", named, accepted, instead)
            return call(*given, **named)

        return checked

    return decorate
