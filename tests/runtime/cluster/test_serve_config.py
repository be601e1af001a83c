"""Serve's configuration file: one that works, or one line of what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from controlnext.errors import InputError
from controlnext.runtime.cluster.config import write_config
from controlnext.runtime.cluster.spec import ClusterSpec
from controlnext.runtime.ray_cluster import ReplicaRange
from controlnext.runtime.serving.settings import ServerSettings
from support.fake_bundle import write_fake_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("config") / "toy", "sd15")


def test_the_configuration_is_one_that_serve_reads(bundle: Path, tmp_path: Path) -> None:
    """It replaces one of before."""
    given = ClusterSpec(
        [str(bundle), "s3://models/other"],
        replicas=ReplicaRange(1, 4),
        settings=ServerSettings(grace=60),
        device="cuda:1",
        backend="tensorrt",
    )
    path = tmp_path / "serve.yaml"
    path.touch()
    write_config(given, path, "127.0.0.1", 8000)
    write_config(given, path, "0.0.0.0", 9000)
    content = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))
    (application,) = content.applications
    assert application.import_path == "controlnext.runtime.cluster.deployment:build"
    assert ClusterSpec.read(application.args) == given
    assert (content.http_options.host, content.http_options.port) == ("0.0.0.0", 9000)


@pytest.mark.parametrize(
    ("changes", "port", "message", "argument"),
    [
        ({"device": "auto"}, 8000, "give cpu or cuda", "device"),
        ({"device": "gpu"}, 8000, "unknown device 'gpu'", "device"),
        ({"backend": "foo"}, 8000, "unknown backend 'foo'; accepted: auto, ", "backend"),
        ({}, 80000, "port is 80000; it must be an integer from 0 to 65535", "port"),
        ({}, 0, "port is 0, .* from 1 to 65535", "port"),
        ({"bundles": ["foo://b/x"]}, 8000, "bundle foo://b/x: unknown scheme 'foo'", "bundle"),
        ({"bundles": ["s3://"]}, 8000, "bundle s3:// names no directory", "bundle"),
        ({"bundles": ["s3://a/toy", "s3://b/toy"]}, 8000, "have the same name 'toy'", None),
        ({"bundles": ["{tmp}/none"]}, 8000, "none", None),
        ({"bundles": ["{tmp}/cut"]}, 8000, "truncated", None),
    ],
)
def test_what_could_not_work_is_refused(
    changes: dict[str, Any], port: int, message: str, argument: str | None, bundle: Path, tmp_path: Path
) -> None:
    """As it is by the server here; no file is written."""
    cut = write_fake_bundle(tmp_path / "cut", "sd15")
    (cut / "text_encoder" / "model.onnx.data").write_bytes(b"short")
    bundles = [text.format(tmp=tmp_path) for text in changes.get("bundles", [str(bundle)])]
    path = tmp_path / "serve.yaml"
    with pytest.raises(InputError, match=message) as caught:
        write_config(ClusterSpec(**{**changes, "bundles": bundles}), path, "127.0.0.1", port)
    assert argument is None or caught.value.argument == argument
    assert not path.exists()


@pytest.mark.parametrize(
    "content", ["thesis", "[1]", "a: b", "applications: [{import_path: other}]", "\t: ["]
)
def test_another_file_stays(content: str, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=r"serve\.yaml is there and is not a configuration") as caught:
        write_config(ClusterSpec([str(bundle)]), path, "127.0.0.1", 8000)
    assert caught.value.argument == "config"
    assert path.read_text() == content
