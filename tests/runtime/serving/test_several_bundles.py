"""Several bundles, of several controls; and errors as answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from controlnext.errors import (
    BundleError,
    ControlNeXtError,
    EngineError,
    InputError,
    MissingDependencyError,
    OutOfMemoryError,
    StoppingError,
    WorkError,
)
from controlnext.runtime.serving.errors import EDIT_FIELDS, refusal_of
from support.fake_bundle import write_fake_bundle
from support.recipe import drawing
from support.serving import USUAL, Site, file_of, image_call, open_pipeline, pixels_of, serve, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROLS = [drawing(number, 24, 16) for number in range(2)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of two controls."""
    return write_fake_bundle(tmp_path_factory.mktemp("served") / "pair", "sd15", controls=2)


@pytest.fixture(scope="module")
def site(toy: Path, pair: Path) -> Iterator[Site]:
    with serve([toy, pair]) as site:
        yield site


def test_each_is_listed(site: Site) -> None:
    models = site.http.get("/v1/models").json()["data"]
    facts = [
        (model["id"], model["controlnext"]["family"], model["controlnext"]["controls"]) for model in models
    ]
    assert facts == [("toy", "sdxl", 1), ("pair", "sd15", 2)]


@pytest.mark.parametrize("route", [ROUTE, EDITS])
def test_a_model_has_to_be_named(site: Site, route: str) -> None:
    given = {"json": image_call()} if route == ROUTE else {"data": {"prompt": "a"}, "files": {"image": b"x"}}
    error = site.refused(400, "POST", route, **given)
    assert (error["param"], error["message"]) == ("model", "model is missing; give one of toy, pair")


@pytest.mark.parametrize("route", [ROUTE, EDITS])
def test_several_controls(site: Site, pair: Path, route: str) -> None:
    call = image_call(model="pair", control_scale=[0.5, 1.5], control_image=[text_of(c) for c in CONTROLS])
    given = {"json": call}
    if route == EDITS:
        call.pop("control_image")
        files = [("image[]", (f"{number}.png", file_of(image))) for number, image in enumerate(CONTROLS)]
        # as OpenAI's client writes lists
        call["control_scale[]"] = call.pop("control_scale")
        given = {"data": call, "files": files}
    answer = site.http.post(route, **given)
    with open_pipeline(pair) as pipe:
        (expected,) = pipe("a red circle", control_image=CONTROLS, control_scale=[0.5, 1.5], **USUAL).images
    assert np.array_equal(pixels_of(answer.json()["data"][0]["b64_json"]), expected), answer.text


def test_one_image_for_several_controls(site: Site) -> None:
    error = site.refused(400, "POST", ROUTE, json=image_call(model="pair"))
    assert error["message"] == "this bundle has 2 controls; control_image must be a list of 2 entries"
    form = {"prompt": "a", "model": "pair"}
    error = site.refused(400, "POST", EDITS, data=form, files={"image": file_of(CONTROLS[0])})
    assert error["param"] == "image"


ENGINE = EngineError("no engine fits 72 x 72 pixels", Path("/secret"), {"backend": "tensorrt"})


@pytest.mark.parametrize(
    ("error", "status", "code", "param"),
    [
        (InputError("wrong", argument="num_images_per_prompt"), 400, "invalid_value", "n"),
        (InputError("wrong", argument="control_image"), 400, "invalid_value", "image"),
        (InputError("wrong"), 400, "invalid_value", None),
        (ENGINE, 400, "unsupported", "size"),
        (BundleError("a file is damaged"), 500, "failed", None),
        (MissingDependencyError("OpenCV is not installed"), 500, "failed", None),
        (WorkError("it overflows"), 500, "failed", None),
        (OutOfMemoryError(64, 64, ("offload",), "bad_alloc"), 507, "out_of_memory", None),
        (StoppingError("it stops"), 503, "stopping", None),
    ],
)
def test_errors_as_answers(error: ControlNeXtError, status: int, code: str, param: str | None) -> None:
    refusal = refusal_of(error, EDIT_FIELDS)
    assert (refusal.status, refusal.fields["code"], refusal.fields["param"]) == (status, code, param)
    assert "secret" not in str(refusal)
    assert "`" not in str(refusal)
    # nothing that would end the same again is repeated by OpenAI's clients
    assert ("Retry-After" in refusal.headers) == (status == 503)
    assert (refusal.headers.get("x-should-retry") == "false") == (status in (500, 507))
