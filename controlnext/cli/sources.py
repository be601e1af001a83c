"""Options for the sources of weights, and the checkpoint that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from controlnext.cli import options
from controlnext.errors import CheckpointError, InputError, blames
from controlnext.families import Family
from controlnext.families.schema import PREVIEW_VAE
from controlnext.hub_names import split_hub_id
from controlnext.image_prompts import KINDS
from controlnext.lora_names import split_scale
from controlnext.runtime.samplers import make_sampler

if TYPE_CHECKING:
    from controlnext.weights import Checkpoint
    from controlnext.weights.wanted import Wanted


@dataclass(frozen=True)
class Sources:
    """Values of the options for weights, which ``export`` and ``verify`` share."""

    base: options.Base = None
    control: options.Control = None
    unet_weights: options.UnetWeights = None
    unet_increments: options.UnetIncrements = False
    vae: options.Vae = None
    preview_vae: options.PreviewVae = None
    lora: options.Lora = None
    textual_inversion: options.TextualInversion = None
    ip_adapter: options.IpAdapter = None
    ip_adapter_image_encoder: options.IpAdapterImageEncoder = None
    no_t5: options.NoT5 = False
    scheduler: options.Scheduler = None
    random_weights: options.RandomWeights = None

    @property
    def given(self) -> list[str]:
        """Return the names of the options that were given."""
        return [
            "--" + field.name.replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) != field.default
        ]

    def load(self, family: Family, variant: str, clip_skip: int = 0) -> Checkpoint:
        """Load the checkpoint; raise :class:`~controlnext.errors.ControlNeXtError` if that fails."""
        from controlnext.weights import load_checkpoint

        leave_out = self._leave_out(family)
        checkpoint = load_checkpoint(
            family,
            variant=variant,
            base=self.base,
            control=self.control or (),
            unet_weights=self.unet_weights or (),
            unet_increments=self.unet_increments,
            vae=self.vae,
            preview_vae=self.preview_vae,
            lora=self.lora or (),
            textual_inversion=self.textual_inversion or (),
            clip_skip=clip_skip,
            ip_adapter=self.ip_adapter or (),
            ip_adapter_image_encoder=self.ip_adapter_image_encoder,
            leave_out=leave_out,
            scheduler=parse_settings(self.scheduler or ()),
            random_seed=self.random_weights,
        )
        _check_sampler(checkpoint)
        return checkpoint

    def check(self) -> None:
        """Raise :class:`CheckpointError` for a path that is not there and is no hub id, which needs no
        PyTorch."""
        if self.random_weights is not None:
            return
        loras = [split_scale(one)[0] for one in self.lora or ()]
        several = {"control": self.control, "unet_weights": self.unet_weights, "lora": loras}
        several |= {"ip_adapter": self.ip_adapter}
        single = {"base": self.base, "vae": self.vae, "preview_vae": self.preview_vae}
        single |= {"ip_adapter_image_encoder": self.ip_adapter_image_encoder}
        for argument, values in {**several, **{name: [one] for name, one in single.items()}}.items():
            with blames(argument):
                for given in values or ():
                    if given is not None and not Path(given).expanduser().exists():
                        split_hub_id(given)

    def wanted(self, family: Family) -> list[Wanted]:
        """Return the files that :meth:`load` reads; nothing is downloaded. Raises as :meth:`load` does."""
        from controlnext.weights.wanted import wanted_files

        leave_out = self._leave_out(family)
        if self.random_weights is not None:
            return []
        return wanted_files(
            family,
            base=self.base,
            control=self.control or (),
            unet_weights=self.unet_weights or (),
            vae=self.vae,
            preview_vae=self.preview_vae,
            lora=self.lora or (),
            textual_inversion=self.textual_inversion or (),
            ip_adapter=self.ip_adapter or (),
            ip_adapter_image_encoder=self.ip_adapter_image_encoder,
            leave_out=leave_out,
        )

    def published(self, family: Family, variant: str, clip_skip: int = 0) -> Checkpoint:
        """Return a checkpoint as published, with the parts that the options ask for, without weights."""
        from controlnext.weights import load_checkpoint

        kinds = [
            next((kind for kind in KINDS if kind in one), next(iter(KINDS))) for one in self.ip_adapter or ()
        ]
        checkpoint = load_checkpoint(
            family,
            variant=variant,
            clip_skip=clip_skip,
            ip_adapter=kinds,
            leave_out=self._leave_out(family),
            scheduler=parse_settings(self.scheduler or ()),
            random_seed=0,
        )
        _check_sampler(checkpoint)
        unasked = () if self.preview_vae else (PREVIEW_VAE,)
        networks = {name: one for name, one in checkpoint.networks.items() if name not in unasked}
        return replace(checkpoint, networks=networks)

    def _leave_out(self, family: Family) -> tuple[str, ...]:
        if not self.no_t5:
            return ()
        if not family.sequence_encoder:
            raise InputError(
                f"--no-t5 is not supported by {family.name}, which has no T5 text encoder; remove it"
            )
        return (family.sequence_encoder,)


def _check_sampler(checkpoint: Checkpoint) -> None:
    """Make the default sampler, to refuse scheduler settings that are valid alone but not together."""
    family = checkpoint.family
    try:
        # a schedule that divides by zero is an error of its own
        with np.errstate(all="ignore"):
            make_sampler(family.default_sampler, checkpoint.scheduler, family.default_steps)
    except InputError as error:
        raise CheckpointError(
            f"the scheduler of the base with the settings of --scheduler: {error}", argument="scheduler"
        ) from error


_NEXT_SETTING = re.compile(r",(?=\s*\w+\s*=)")


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """Parse ``KEY=VALUE[,KEY=VALUE...]`` texts. A value is JSON or a word; commas within a list do not split.

    Raises :class:`~controlnext.errors.InputError` for other text and for a key that is given twice.
    """
    settings: dict[str, Any] = {}
    for text in (one for many in given for one in _NEXT_SETTING.split(many)):
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (key and equals and value):
            raise InputError(
                f"--scheduler {text!r} is not a setting; give KEY=VALUE, such as prediction_type=v_prediction"
            )
        if key in settings:
            raise InputError(f"--scheduler gives {key} twice; give it once")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    return settings
