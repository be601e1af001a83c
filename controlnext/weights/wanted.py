"""The files that loading a checkpoint needs, and whether they have to be downloaded, before it is loaded.

The choices are those of :func:`~controlnext.weights.load_checkpoint` itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from controlnext.errors import CheckpointError, blames
from controlnext.families import Family
from controlnext.families.schema import VAE
from controlnext.hub_names import split_hub_id
from controlnext.lora_names import split_scale
from controlnext.weights.advice import tells_usual_base
from controlnext.weights.base import without_networks
from controlnext.weights.choices import (
    beside_adapter,
    beside_control,
    beside_vae,
    choose_base,
    choose_control,
    choose_network_files,
    choose_trained,
    choose_trained_beside,
    choose_vae,
)
from controlnext.weights.hub import list_repository
from controlnext.weights.ip_adapter import only_file
from controlnext.weights.load import Given
from controlnext.weights.lora import choose_lora
from controlnext.weights.textual_inversion import choose_inversion, split_token
from controlnext.weights.weight_source import Beside, Choice, wanted_of

_LOOKED_AT = ("*", "*/*")
"""The files of a directory that a choice looks at: down to ``unet/config.json``."""


@dataclass(frozen=True)
class WantedFile:
    """A file that is needed, by its name in the directory or repository: its size in bytes, None if unknown,
    and whether it is on this machine."""

    name: str
    bytes: int | None
    here: bool


@dataclass(frozen=True)
class Wanted:
    """The files that one argument needs.

    ``argument``: its name; ``given``: its value; ``hub``: whether that is a hub id; ``revision``: the commit;
    ``problem``: why the hub is not asked, empty otherwise.
    """

    argument: str
    given: str
    hub: bool
    files: Sequence[WantedFile]
    revision: str = ""
    problem: str = ""


def wanted_files(
    family: Family,
    *,
    base: Given | None = None,
    control: Sequence[Given] = (),
    unet_weights: Sequence[Given] = (),
    vae: Given | None = None,
    preview_vae: Given | None = None,
    lora: Sequence[str] = (),
    textual_inversion: Sequence[str] = (),
    ip_adapter: Sequence[Given] = (),
    ip_adapter_image_encoder: Given | None = None,
    leave_out: Collection[str] = (),
) -> list[Wanted]:
    """Return the files that :func:`load_checkpoint` reads for these arguments; nothing is downloaded.

    The hub is asked for the names and sizes of files, unless it is offline. Raises :class:`CheckpointError`
    as loading does.
    """
    encoder = None if family.image_prompts is None else family.image_prompts.encoder
    beside = encoder if ip_adapter_image_encoder is None else None
    own, replaced = without_networks(family, leave_out), () if vae is None else (VAE,)
    inversions = [split_token(one)[0] for one in textual_inversion]
    entries: list[tuple[str, Sequence[Given | None], Choice, Beside]] = [
        ("base", [base or family.default_base], partial(choose_base, own, replaced), _nothing),
        ("control", control, partial(choose_control, family), partial(beside_control, family)),
        ("unet_weights", unet_weights, partial(choose_trained, family), _nothing),
        ("vae", [vae], partial(choose_vae, family.networks[VAE]), beside_vae),
        ("preview_vae", [preview_vae], partial(choose_vae, family.networks[VAE]), beside_vae),
        ("lora", [split_scale(one)[0] for one in lora], choose_lora, _nothing),
        ("textual_inversion", inversions, choose_inversion, _nothing),
        ("ip_adapter", ip_adapter, only_file, partial(beside_adapter, beside)),
    ]
    if encoder is not None:
        of_encoder = partial(choose_network_files, encoder)
        entries.append(("ip_adapter_image_encoder", [ip_adapter_image_encoder], of_encoder, _nothing))
    found = []
    for argument, values, choice, companions in entries:
        for given in values:
            if given is not None:
                usual = tells_usual_base(family, base) if argument == "base" else nullcontext()
                with blames(argument), usual:
                    found.append(_wanted(argument, given, choice, companions))
    return [_without_trained(family, one) for one in found] if unet_weights else found


def _without_trained(family: Family, one: Wanted) -> Wanted:
    """Return the files of a local control without those of the denoiser's, which are not read where others
    are given; from the hub they come all the same."""
    if one.hub or one.argument != "control":
        return one
    trained = choose_trained_beside(family, [file.name for file in one.files])
    return replace(one, files=[file for file in one.files if file.name not in trained])


def _nothing(_file: str, _names: Sequence[str]) -> Sequence[str]:
    return ()


def _wanted(argument: str, given: Given, choice: Choice, beside: Beside) -> Wanted:
    path = Path(given).expanduser()
    if path.exists():
        return Wanted(argument, str(given), False, list(_local(path, choice, beside)))
    repository, revision, inside = split_hub_id(given)
    try:
        listing = list_repository(repository, revision)
        names = wanted_of(repository, inside, choice, beside, list(listing.sizes))
    except CheckpointError as error:
        raise CheckpointError(f"{given}: no such file or directory here, and {error}") from error
    files = [WantedFile(name, listing.sizes[name], name in listing.here) for name in dict.fromkeys(names)]
    return Wanted(argument, str(given), True, files, listing.commit, listing.problem)


def _local(path: Path, choice: Choice, beside: Beside) -> Iterator[WantedFile]:
    """Yield the files that are read of a path."""
    if path.is_file():
        directory, names = path.parent, [path.name]
        names += beside(path.name, _below(directory))
    else:
        directory, names = path, list(choice(_below(path)))
    if not names:
        raise CheckpointError(f"{path} has nothing that fits; give another directory, a file or a hub id")
    for name in dict.fromkeys(names):
        yield WantedFile(name, (directory / name).stat().st_size, True)


def _below(directory: Path) -> list[str]:
    """Return the names of files in a directory, and in those within it as far down as a choice looks."""
    paths = (path for pattern in _LOOKED_AT for path in directory.glob(pattern))
    return [path.relative_to(directory).as_posix() for path in paths if path.is_file()]
