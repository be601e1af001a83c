"""Versions that an extra does not take are told in a line, with who else needs them; of distributions that
are written into a directory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from controlnext.errors import MissingDependencyError
from controlnext.versions import check_versions


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have nothing be installed but what is written into the returned directory."""
    bare = [one for one in sys.path if "site-packages" not in one and not [*Path(one).glob("*.egg-info")]]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *bare])
    install(tmp_path, "controlnext", "0.1.0", "numpy>=2.0", 'transformers>=5.20; extra == "export"')
    return tmp_path


def install(site: Path, name: str, version: str, *requirements: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    needs = "".join(f"Requires-Dist: {one}\n" for one in requirements)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")


def message() -> str:
    with pytest.raises(MissingDependencyError) as caught:
        check_versions("export")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_in_its_range_or_not_installed_passes(site: Path) -> None:
    check_versions("export")
    install(site, "transformers", "5.21.0rc1")
    install(site, "numpy", "2.4.0+local")
    check_versions("export")


def test_an_older_version_is_told_with_the_command(site: Path) -> None:
    install(site, "transformers", "4.57.6")
    install(site, "optimum", "2.3.0", "transformers>=4.29")
    assert message() == (
        'this needs transformers>=5.20 (4.57.6 is installed); run pip install "controlnext[export]"'
    )


def test_who_excludes_the_version_is_named(site: Path) -> None:
    """Not a library that is replaced itself, nor one whose extra is at fault."""
    install(site, "transformers", "4.57.6", "numpy<2")
    install(site, "numpy", "1.26.0")
    install(site, "optimum-onnx", "0.1.0", "transformers<4.58.0,>=4.36", "numpy")
    install(site, "other", "1.0", 'transformers<5; extra == "old"')
    told = message()
    assert "numpy>=2.0 (1.26.0 is installed), transformers>=5.20 (4.57.6 is installed)" in told
    assert ", but optimum-onnx 0.1.0 needs transformers<4.58.0,>=4.36: they cannot share" in told
    assert "other" not in told.replace("make another", "")
    assert "transformers 4.57.6 needs" not in told


def test_without_metadata_nothing_is_refused(site: Path) -> None:
    install(site, "transformers", "4.57.6")
    (site / "controlnext-0.1.0.dist-info" / "METADATA").unlink()
    (site / "controlnext-0.1.0.dist-info").rmdir()
    check_versions("export")
