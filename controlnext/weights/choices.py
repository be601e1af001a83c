"""Choice of the files to read or download, from a directory or a hub repository: for a base, a VAE, a
control."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from controlnext.families import Family, Network
from controlnext.weights import control, trained
from controlnext.weights.json_files import INDEX
from controlnext.weights.lazy import is_weight_file
from controlnext.weights.shipped import PREPROCESSOR, SCHEDULER
from controlnext.weights.tiny_vae import counterpart
from controlnext.weights.weight_source import choose_weights

STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model", "pytorch_model")}
"""Names of a network's weight files in its directory of a diffusers checkpoint, by the network's library."""

_CONFIG = "config.json"
_TOKENIZER_FILES = (".json", ".txt", ".model")


def choose_base(family: Family, without: Collection[str], names: Sequence[str]) -> list[str]:
    """Return the files of a diffusers directory of this family, except the weights of the networks in
    ``without``."""
    chosen = [name for name in names if name in (INDEX, SCHEDULER, PREPROCESSOR)]
    for key, network in family.networks.items():
        files = _choose_network(network, names)
        chosen += [name for name in files if key not in without or name == f"{network.folder}/{_CONFIG}"]
        if network.tokenizer:
            inside = f"{network.tokenizer}/"
            chosen += [n for n in names if n.startswith(inside) and n.endswith(_TOKENIZER_FILES)]
    return chosen


def _choose_network(network: Network, names: Sequence[str]) -> list[str]:
    prefix = f"{network.folder}/"
    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    config = [name for name in inside if name == _CONFIG]
    return [prefix + name for name in (*config, *choose_weights(inside, STEMS[network.library]))]


def choose_network_files(network: Network, names: Sequence[str]) -> list[str]:
    """Return the files of a network in its own directory."""
    return [name for name in names if name == _CONFIG] + choose_weights(names, STEMS[network.library])


def beside_adapter(encoder: Network | None, _file: str, names: Sequence[str]) -> list[str]:
    """Return the files of an image ``encoder`` in the directory of an IP-Adapter's file; none without it."""
    return _choose_network(encoder, names) if encoder else []


def choose_vae(network: Network, names: Sequence[str]) -> list[str]:
    """Return the files of a VAE's own directory, or of the VAE in a diffusers directory."""
    if _CONFIG in names:
        return [_CONFIG, *choose_weights(names, STEMS[network.library])]
    return _choose_network(network, names)


def beside_vae(file: str, names: Sequence[str]) -> list[str]:
    """Return the files to read together with a VAE's file: its configuration, and the encoder that belongs to
    a decoder, or the reverse."""
    return [name for name in names if name in (_CONFIG, counterpart(file.rpartition("/")[2]))]


def choose_control(family: Family, names: Sequence[str]) -> list[str]:
    """Return a control module's weights, and the tensors of the denoiser that were trained with it."""
    return choose_weights(names, control.STEMS) + choose_trained_beside(family, names)


def choose_trained_beside(family: Family, names: Sequence[str]) -> list[str]:
    """Return the files in a control's directory that hold the denoiser's tensors trained with it."""
    return choose_weights(names, (family.denoiser,))


def beside_control(family: Family, file: str, names: Sequence[str]) -> list[str]:
    """Return the files with the denoiser's tensors that belong to a control module's ``file``, among the
    ``names`` in its directory."""
    return choose_trained_beside(family, names) if stands_for(file, names) else []


def stands_for(file: str, names: Sequence[str]) -> bool:
    """Return whether the control in ``file`` is the one that its directory, with these ``names``, stands for:
    another format of the same name (``controlnet.fp16.safetensors``) is the same control, another name may be
    another one."""
    of_directory = choose_weights(names, control.STEMS)
    return bool(of_directory) and _stem(file) == _stem(of_directory[0])


def others(names: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Return the weight files among the ``names`` in a directory that are not a format of the ``chosen``
    ones, such as the same in float16."""
    taken = {_stem(file) for file in chosen}
    return sorted(name for name in names if is_weight_file(name) and _stem(name) not in taken)


def _stem(file: str) -> str:
    return re.split(r"\.|-\d+-of-", file)[0]


def choose_trained(family: Family, names: Sequence[str]) -> list[str]:
    """Return the files of a directory of trained tensors of the denoiser."""
    return choose_weights(names, (family.denoiser, *trained.STEMS))
