"""Pipelines from the model hub and to it, with diffusers' names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from controlnext.bundle.hub import hub_copy, push_bundle, save_bundle
from controlnext.bundle.remote import is_remote
from controlnext.errors import InputError
from controlnext.runtime.bundle import Bundle
from controlnext.types import Precision

_OFFLOAD = "Pipeline.load(..., offload=True)"
_PARTS = "no attribute: the networks are graphs of the bundle (`pipe.bundle`)"
_BY_ITSELF = "done by the graphs themselves"
INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "scheduler": 'the call\'s sampler, such as sampler="euler"',
        "to": "Pipeline.load(..., device=...)",
        "device": "`backend`",
        "dtype": "the bundle's precision, `pipe.bundle.manifest.precision`",
        "enable_model_cpu_offload": _OFFLOAD,
        "enable_sequential_cpu_offload": _OFFLOAD,
        "enable_vae_tiling": "the call's vae_tiling=True",
        "enable_vae_slicing": "done always: images are decoded one by one",
        "enable_attention_slicing": _BY_ITSELF,
        "enable_xformers_memory_efficient_attention": _BY_ITSELF,
        "load_lora_weights": "add_lora",
        "set_adapters": 'the call\'s lora={"name": scale}',
        "unload_lora_weights": "remove_lora",
        "fuse_lora": "`lora` of the export",
        "load_ip_adapter": "`ip_adapter` of the export",
        "set_ip_adapter_scale": "the call's ip_adapter_scale",
        "load_textual_inversion": "`textual_inversion` of the export",
        "set_progress_bar_config": "stream, which yields the steps",
        **dict.fromkeys(("unet", "transformer", "vae", "text_encoder", "tokenizer", "controlnet"), _PARTS),
    }
)
"""Our own in place of the attributes of diffusers' pipelines, by name."""


def refuse_torch_dtype(value: object) -> None:
    """Raise :class:`InputError` for diffusers' argument ``torch_dtype``, unless it is None."""
    if value is not None:
        raise InputError(
            f"torch_dtype is {value}, but a bundle has its own precision; leave it out, and load a bundle"
            f" that was exported with the `precision` that you need: {', '.join(Precision)}",
            argument="torch_dtype",
        )


class Pretrained(ABC):
    """The part of a pipeline that fetches its bundle, saves it and sends it."""

    bundle: Bundle

    if not TYPE_CHECKING:  # else every name would be an attribute to them

        def __getattr__(self, name: str) -> Any:
            """Raise :class:`AttributeError`, for an attribute of diffusers' with what takes its place."""
            raise _no_attribute(self, name)

        def __setattr__(self, name: str, value: object) -> None:
            """Set an attribute; raise :class:`AttributeError` for those of diffusers' in :data:`INSTEAD`."""
            if name in INSTEAD:
                raise _no_attribute(self, name)
            super().__setattr__(name, value)

    @classmethod
    @abstractmethod
    def load(cls, bundle: str | Path, *args: Any, **options: Any) -> Self:
        """Load the bundle in a directory."""

    @classmethod
    def from_pretrained(
        cls,
        repo_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        **options: Any,
    ) -> Self:
        """Load a bundle from a directory or from the model hub, into whose cache it is downloaded once.

        Args:
            repo_or_path: a directory, ``owner/name`` at the hub, or a location such as ``s3://...``.
            revision: branch, tag or commit.
            subfolder: the directory of the bundle there.
            token, cache_dir, local_files_only, force_download: as of huggingface_hub's ``snapshot_download``.
            options: those of :meth:`Pipeline.load`.

        Raises:
            BundleError: there is none, or the hub does not give it.
            MissingDependencyError: huggingface_hub is not installed; directories do not need it.
        """
        refuse_torch_dtype(options.get("torch_dtype"))
        if is_remote(repo_or_path):
            parts = [str(repo_or_path).rstrip("/"), *([subfolder] if subfolder else [])]
            return cls.load("/".join(parts), **options)
        place = Path(repo_or_path)
        if isinstance(repo_or_path, Path) or place.exists():
            return cls.load(place / (subfolder or ""), **options)
        copy = hub_copy(
            repo_or_path,
            revision=revision,
            subfolder=subfolder,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        return cls.load(copy, **options)

    def save_pretrained(
        self, save_directory: str | Path, *, force: bool = False, licence: str | None = None
    ) -> Path:
        """Copy the bundle to a new directory, with a model card; return it.

        ``force``: replace a bundle that is there.
        Raises :class:`InputError` for a directory with other files.
        """
        return save_bundle(self.bundle.path, Path(save_directory), force=force, licence=licence)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        subfolder: str | None = None,
        token: str | bool | None = None,
        private: bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        licence: str | None = None,
    ) -> str:
        """Send the bundle to the model hub in one commit; return the commit's address.

        Only files that changed are sent, built engines never. A model card is written if there is none;
        ``licence``: for that card, an identifier of the hub such as "openrail++".

        Raises:
            BundleError: the hub refuses it, or cannot be reached.
            MissingDependencyError: huggingface_hub is not installed.
        """
        return push_bundle(
            self.bundle.path,
            repo_id,
            revision=revision,
            subfolder=subfolder,
            token=token,
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
            licence=licence,
        )


def _no_attribute(pipeline: Pretrained, name: str) -> AttributeError:
    kind = type(pipeline).__name__
    told = f"{kind} has no attribute {name!r}"
    if name in INSTEAD:
        told += f"; what {name} is in diffusers is here {INSTEAD[name]}"
    return AttributeError(told)
