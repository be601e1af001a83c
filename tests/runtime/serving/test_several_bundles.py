"""Several bundles, of several controls; and errors as answers."""

from __future__ import annotations

import re
from functools import partial
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
from support.gate import until
from support.recipe import drawing
from support.serving import USUAL, Site, file_of, image_call, open_pipeline, pixels_of, text_of

ROUTE, EDITS = "/v1/images/generations", "/v1/images/edits"
CONTROLS = [drawing(number, 24, 16) for number in range(2)]


@pytest.fixture(scope="module")
def site(several: Site) -> Site:
    return several


def test_each_is_listed(site: Site) -> None:
    models = site.http.get("/v1/models").json()["data"]
    facts = [
        (model["id"], model["controlnext"]["family"], model["controlnext"]["controls"]) for model in models
    ]
    assert facts == [("toy", "sdxl", 1), ("pair", "sd15", 2), ("clips", "svd", 1)]


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


@pytest.mark.parametrize("route", [ROUTE, "/v1/videos"])
def test_a_model_that_is_not_served(site: Site, route: str) -> None:
    frame = text_of(CONTROLS[0])
    call = {"input_reference": frame, "control_clip": [frame]} if route != ROUTE else image_call()
    error = site.refused(404, "POST", route, json={**call, "model": "none"})
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert error["message"] == "there is no model 'none'; accepted: toy, pair, clips"


def loaded(site: Site) -> set[str]:
    """Return the models that are loaded in any process."""
    lines = site.http.get("/metrics").text.splitlines()
    found = (re.fullmatch(r'controlnext_engine_memory_bytes{model="(\w+)"} (.+)', line) for line in lines)
    return {match[1] for match in found if match and float(match[2])}


def test_a_model_is_given_up_for_another(site: Site) -> None:
    """No process has two of them, and the answers are those of the model that was asked for."""
    images: dict[str, np.ndarray] = {}

    def is_there(model: str) -> bool:
        """Ask a model; others who use the server may have it given up again at once."""
        controls = [text_of(CONTROLS[0])] * (2 if model == "pair" else 1)
        answer = site.http.post(ROUTE, json=image_call(model=model, control_image=controls))
        assert answer.status_code == 200, answer.text
        image = pixels_of(answer.json()["data"][0]["b64_json"])
        assert np.array_equal(images.setdefault(model, image), image)
        there = loaded(site)
        assert len(there) <= (2 if site.pid else 1)
        return model in there

    for model in ("toy", "pair", "toy"):
        until(partial(is_there, model))
    assert not np.array_equal(images["toy"], images["pair"])


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
