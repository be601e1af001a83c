"""The engine store: what is loaded is what was asked for, complete and undamaged, or nothing is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from controlnext.bundle.manifest import Manifest
from controlnext.bundle.reader import read_manifest
from controlnext.engines.tensorrt.flavors import FLAVORS
from controlnext.engines.tensorrt.gpu import Gpu
from controlnext.engines.tensorrt.store import (
    ENGINE,
    ENTRY,
    EngineRequirements,
    Entry,
    Key,
    StoredEngine,
    engine_directory,
    exclusive,
    find_engine,
    graph_key,
    kept_engine,
    new_engine,
    write_entry,
)
from controlnext.errors import BundleError, WorkError
from support.fake_bundle import write_fake_bundle

RTX = FLAVORS["tensorrt-rtx"]
CONTENT = b"an engine"
SM86 = EngineRequirements(
    "tensorrt-rtx", "1.7", "sm86 (NVIDIA RTX A4000)", lambda hardware: RTX.suits(hardware, Gpu("", "sm86"))
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_fake_bundle(tmp_path / "bundle")


def _key(bundle: Path, **changes: object) -> Key:
    key = Key(
        **graph_key(read_manifest(bundle), "unet"),
        backend="tensorrt-rtx",
        version="1.7",
        hardware="portable",
        profile={"sample": [[1, 4, 8, 8], [2, 4, 16, 16], [8, 4, 24, 24]]},
        options={"optimization_level": 3, "workspace": None, "strip_weights": False},
    )
    return msgspec.structs.replace(key, **changes)


def _store(bundle: Path, **changes: object) -> Path:
    """An engine whose key differs in ``changes`` from the right one, in the folder of its hardware."""
    key = _key(bundle, **changes)
    place = engine_directory(bundle, "tensorrt-rtx", key.hardware, "unet")
    with new_engine(place) as made:
        (made / ENGINE).write_bytes(CONTENT)
        write_entry(made, Entry(key, 1.0, {"height": "64:128:192"}))
    return place


def _find(bundle: Path, wanted: EngineRequirements = SM86) -> StoredEngine:
    return find_engine(bundle, read_manifest(bundle), "unet", wanted)


def test_an_engine_is_found_with_its_entry(bundle: Path) -> None:
    _store(bundle)
    found = _find(bundle)
    assert found.path.read_bytes() == CONTENT
    assert found.entry.key == _key(bundle)


@pytest.mark.parametrize(
    ("part", "built", "texts"),
    [
        ("graph", "0" * 64, ("graph is 0000000000000000, wanted",)),
        ("weights", "1" * 64, ("weights is 1111111111111111, wanted",)),
        ("precision", "fp16", ("precision is fp16, wanted fp32",)),
        ("backend", "tensorrt", ("backend is tensorrt, wanted tensorrt-rtx",)),
        ("version", "1.6", ("version is 1.6, wanted 1.7",)),
        ("hardware", "sm120", ("hardware is sm120, wanted sm86 (NVIDIA RTX A4000)",)),
    ],
)
def test_a_stale_or_foreign_engine_is_refused_with_the_part_that_differs(
    bundle: Path, part: str, built: str, texts: tuple[str, ...]
) -> None:
    _store(bundle, **{part: built})
    with pytest.raises(BundleError) as refusal:
        _find(bundle)
    message = str(refusal.value)
    # an engine for other hardware is right elsewhere: what it was built with is no advice here
    settings = "" if part == "hardware" else ", `height` 64:128:192, `optimization_level` 3"
    assert message.endswith(f"; build one with `backend` tensorrt-rtx{settings}"), message
    for text in texts:
        assert text in message
    others = {"graph", "weights", "precision", "backend", "version", "hardware"} - {part}
    assert not [name for name in others if f"{name} is " in message], message


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("graph", "0" * 64),
        ("weights", "0" * 64),
        ("precision", "fp16"),
        ("backend", "tensorrt"),
        ("version", "1.6"),
        ("hardware", "sm86"),
        ("profile", {"sample": [[1, 4, 8, 8], [2, 4, 16, 16], [8, 4, 32, 24]]}),
        ("options", {"optimization_level": 3, "workspace": 1 << 20, "strip_weights": False}),
    ],
)
def test_a_build_keeps_only_what_equals_it_in_every_part(bundle: Path, part: str, value: object) -> None:
    place = _store(bundle)
    assert kept_engine(place, _key(bundle)) is not None
    assert kept_engine(place, _key(bundle, **{part: value})) is None


def test_a_missing_engine_names_the_backend_to_build_with(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"has no tensorrt-rtx engine of unet; build one with `backend`"):
        _find(bundle)


def test_engines_of_the_two_libraries_are_kept_apart(bundle: Path) -> None:
    """The name of one begins with the other's."""
    _store(bundle)
    with pytest.raises(BundleError, match="has no tensorrt engine of unet"):
        _find(bundle, EngineRequirements("tensorrt", "1.7", "sm86", lambda _hardware: True))


def test_an_engine_for_this_gpu_goes_before_one_for_many(bundle: Path) -> None:
    for hardware in ("portable", "sm86+sm89", "sm86", "sm120"):
        _store(bundle, hardware=hardware)
        # the last one is of no use here
        expected = "sm86" if hardware == "sm120" else hardware
        assert _find(bundle).entry.key.hardware == expected


def test_a_stale_engine_does_not_hide_a_good_one(bundle: Path) -> None:
    _store(bundle, hardware="sm86", version="1.6")
    _store(bundle, hardware="portable")
    assert _find(bundle).entry.key.hardware == "portable"


def test_an_engine_that_an_earlier_version_built_is_found(bundle: Path) -> None:
    """Its entry has the options that it was built with in place of ranges."""
    entry = {"key": _key(bundle), "arguments": ["--height", "64:128:192"], "seconds": 1.0}
    with new_engine(engine_directory(bundle, "tensorrt-rtx", "portable", "unet")) as made:
        (made / ENGINE).write_bytes(CONTENT)
        (made / ENTRY).write_bytes(msgspec.json.encode(entry))
    assert _find(bundle).entry == Entry(_key(bundle), 1.0)


@pytest.mark.parametrize("name", [ENGINE, ENTRY, "checksums.json"])
@pytest.mark.parametrize("position", [0, -3])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_noticed(bundle: Path, name: str, position: int, bit: int) -> None:
    place = _store(bundle)
    content = bytearray((place / name).read_bytes())
    content[position] ^= 1 << bit
    (place / name).write_bytes(content)
    with pytest.raises(BundleError, match="build one with `backend` tensorrt-rtx"):
        _find(bundle)
    assert kept_engine(place, _key(bundle)) is None


def test_a_truncated_engine_is_noticed(bundle: Path) -> None:
    place = _store(bundle)
    (place / ENGINE).write_bytes(CONTENT[:-1])
    with pytest.raises(BundleError, match=rf"is damaged: {ENGINE}.*`height` 64:128:192"):
        _find(bundle)


_KILLED = """
import sys, time
from pathlib import Path
from controlnext.engines.tensorrt.store import ENGINE, exclusive, new_engine

place = Path(sys.argv[1])
with exclusive(place), new_engine(place) as made:
    (made / ENGINE).write_bytes(b"half an engine")
    print("writing", flush=True)
    time.sleep(60)
"""


def _half_built(place: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing an engine to ``place``."""
    process = subprocess.Popen([sys.executable, "-c", _KILLED, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def test_a_build_that_was_killed_leaves_nothing_that_is_taken_for_an_engine(bundle: Path) -> None:
    place = engine_directory(bundle, "tensorrt-rtx", "portable", "unet")
    with _half_built(place) as process:
        process.kill()
    left = [path for path in place.parent.iterdir() if path.is_dir()]
    assert len(left) == 1
    with pytest.raises(BundleError, match="has no tensorrt-rtx engine of unet"):
        _find(bundle)
    with exclusive(place):
        assert not [path for path in place.parent.iterdir() if path.is_dir()]
        _store(bundle)
    assert _find(bundle).path.read_bytes() == CONTENT


def test_another_build_of_the_same_engine_is_waited_for(bundle: Path) -> None:
    """As long as it lives, what it has written so far stays."""
    place = engine_directory(bundle, "tensorrt-rtx", "portable", "unet")
    with _half_built(place) as process:
        code = _KILLED.replace("time.sleep(60)", "")
        with subprocess.Popen(
            [sys.executable, "-c", code, place], stdout=subprocess.PIPE, text=True
        ) as second:
            time.sleep(1)
            assert second.poll() is None
            assert len([path for path in place.parent.iterdir() if path.is_dir()]) == 1
            process.kill()
            assert second.wait(timeout=20) == 0
    assert (place / ENGINE).read_bytes() == b"half an engine"


def test_a_bundle_that_cannot_be_written_is_an_error_in_words(bundle: Path) -> None:
    (bundle / "engines").write_text("in the way")
    place = engine_directory(bundle, "tensorrt-rtx", "portable", "unet")
    with pytest.raises(WorkError, match="engines cannot be written"), exclusive(place):
        pass


def test_a_graph_that_the_bundle_has_not(bundle: Path) -> None:
    manifest: Manifest = read_manifest(bundle)
    with pytest.raises(BundleError, match="has no graph image_encoder; it has text_encoder"):
        find_engine(bundle, manifest, "image_encoder", SM86)
