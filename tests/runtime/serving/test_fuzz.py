"""Requests made of the description of the routes: no failure, no traceback, answers as described."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings, strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from support.serving import Site

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def description(site: Site) -> Any:
    """Return the description of the routes without that of keys: requests have one, so that they are read."""
    described = site.http.get("/openapi.json").json()
    described["components"].pop("securitySchemes", None)
    for methods in described["paths"].values():
        for operation in methods.values():
            operation.pop("security", None)
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=site.address)
    return schema


ROUTES = [
    ("POST", "/v1/images/generations"),
    ("POST", "/v1/images/edits"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos"),
    ("GET", "/v1/videos/{video_id}"),
    ("GET", "/v1/videos/{video_id}/content"),
    ("DELETE", "/v1/videos/{video_id}"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_no_request_makes_the_server_fail(site: Site, description: Any, method: str, path: str) -> None:
    # a route without fields cannot be asked wrongly
    modes = list(GenerationMode) if method == "POST" else [GenerationMode.POSITIVE]

    @settings(max_examples=10, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(strategies.data())
    def check(data: Any) -> None:
        mode = data.draw(strategies.sampled_from(modes))
        case = data.draw(description[path][method].as_strategy(generation_mode=mode))
        response = case.call_and_validate(
            checks=CHECKS, headers={"Authorization": site.http.headers["Authorization"]}
        )
        assert response.status_code != 401
        assert "Traceback" not in response.text

    check()


def test_all_routes_are_tried(description: Any) -> None:
    there = [result.ok() for result in description.get_all_operations()]
    assert {(operation.method.upper(), operation.path) for operation in there} == set(ROUTES)


def test_references_of_the_description_lead_somewhere(site: Site) -> None:
    described = site.http.get("/openapi.json")
    schemas = described.json()["components"]["schemas"]
    references = set(re.findall(r'"\$ref":"([^"]+)"', described.text))
    assert references
    assert references <= {f"#/components/schemas/{name}" for name in schemas}
