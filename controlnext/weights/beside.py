"""Files beside a control module: the denoiser's tensors that were trained with it, and warnings about files
that are not read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from controlnext.families import Family
from controlnext.weights import control as control_weights
from controlnext.weights import trained
from controlnext.weights.choices import choose_trained_beside, others, stands_for
from controlnext.weights.weight_source import WeightSource, choose_weights

log = logging.getLogger(__name__)


def trained_beside(family: Family, control: WeightSource) -> WeightSource | None:
    """Return the directory with the denoiser's tensors that were trained with a ``control``; None if there
    are none. The result is the same for the control's directory and for the file in it."""
    directory, file = _directory(family, control), _file(control)
    files = _trained_files(family, directory)
    if directory.path != file.parent:
        file = file.resolve()
    if directory is control or stands_for(file.name, _names(directory.path)):
        _tell_others(directory, files, lambda name: name.startswith(family.denoiser))
        if files and directory is not control:
            log.info("%s is used with %s beside it", control.name, files[0].name)
        return directory if files else None
    if files:
        log.warning(
            "%s: %s beside it is not used, as it may belong to another control; if it was trained with this"
            " one, give it with `unet_weights` (and `unet_increments`, if it holds differences to the base)",
            control.name,
            files[0].name,
        )
    return None


def _directory(family: Family, control: WeightSource) -> WeightSource:
    """Return the directory of the denoiser's tensors that belong to a ``control``: the control's own, or, if
    that has none and the control is a link, the directory of the link's target."""
    own = control.directory if control.path.is_file() else control
    if _trained_files(family, own) or not _file(control).is_symlink():
        return own
    target = _file(control).resolve()
    led = WeightSource(target, target.name).directory
    return led if _trained_files(family, led) else own


def _file(control: WeightSource) -> Path:
    """Return the file of a control, which is given as a file or as a directory."""
    if control.path.is_file():
        return control.path
    return control.path / choose_weights(_names(control.path), control_weights.STEMS)[0]


def _trained_files(family: Family, directory: WeightSource) -> list[Path]:
    return [directory.path / name for name in choose_trained_beside(family, _names(directory.path))]


def _names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def tell_unused(family: Family, controls: Sequence[WeightSource], given: Sequence[WeightSource]) -> None:
    """Warn of trained tensors beside the ``controls`` that the ``given`` ones replace."""
    used = {weight_source.path.resolve() for weight_source in given}
    for directory in (_directory(family, control) for control in controls):
        files = _trained_files(family, directory)
        if files and not used & {directory.path.resolve(), *(file.resolve() for file in files)}:
            log.warning(
                "%s: the %s tensors beside the control module are not used, `unet_weights` replaces them",
                directory.name,
                family.denoiser,
            )


def tell_other_controls(family: Family, control: WeightSource) -> None:
    """Warn of weight files in a control's directory that are neither its own nor the denoiser's."""
    if control.path.is_dir():
        _tell_others(control, [_file(control)], lambda name: not name.startswith(family.denoiser))


def tell_other_trained(family: Family, given: WeightSource) -> None:
    """Warn of weight files in a directory of trained tensors that are not read and not a control's."""
    if not given.path.is_dir():
        return
    names = _names(given.path)
    shared = bool(choose_weights(names, control_weights.PUBLISHED))
    chosen = choose_weights(names, (family.denoiser, *trained.STEMS))
    taken = [given.path / name for name in chosen]
    _tell_others(given, taken, lambda name: not shared or name.startswith(family.denoiser))


def _tell_others(directory: WeightSource, taken: Sequence[Path], mine: Callable[[str], bool]) -> None:
    left = [name for name in others(_names(directory.path), [file.name for file in taken]) if mine(name)]
    if left:
        log.warning(
            "%s: of its weight files %s is read and %s is not; if that one is meant, give its path",
            directory.name,
            taken[0].name if taken else "none",
            ", ".join(left[:8]),
        )
