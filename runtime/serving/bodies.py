"""Bodies of requests: JSON, or forms (multipart/form-data) with fields as text and images as files."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from controlnext.runtime.samplers.steps import GIVEN_STEPS
from controlnext.runtime.serving.errors import HttpError, of_validation, shortened
from controlnext.runtime.serving.form_parser import FormParser

Fields = TypeVar("Fields", bound=BaseModel)

_MOST_FIELDS = 100
_EMPTY = ("prompt", "negative_prompt")
"""Fields that may be empty; browsers send the others empty where they were not filled in."""

_LISTS = ("control_scale", *GIVEN_STEPS)
"""Fields that may be lists."""


@dataclass
class Form:
    """A form: the text of its fields, and the contents of its files, by field."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, list[bytes]] = field(default_factory=dict)

    def parse(self, model: type[Fields], *files: str) -> Fields:
        """Return the fields as a ``model``; ``files``: the names of those that are files.

        Raises :class:`HttpError` for a field that is not accepted.
        """
        known = [*model.model_fields, *files]
        for name in self.files:
            if name not in files:
                what = "is a file; send it as text" if name in known else "is not a file of this route"
                raise HttpError(
                    400,
                    f"{shortened(name)} {what}; files: {', '.join(files)}",
                    param=name,
                    code="invalid_value",
                )
        for name in files:
            if name in self.fields:
                raise HttpError(400, f"{name} is text; send it as a file", param=name, code="invalid_value")
        try:
            return model.model_validate(self.fields)
        except ValidationError as error:
            raise of_validation(error.errors()[0], known) from error


def is_form(request: Request) -> bool:
    """Return whether the body of a request is a form."""
    return _kind(request) == "multipart/form-data"


async def read_json(request: Request, model: type[Fields]) -> Fields:
    """Return the JSON object that a request has for its body, as a ``model``.

    Raises :class:`HttpError` for another body, and for a field that is not accepted.
    """
    _check_encoding(request)
    if _kind(request) != "application/json":
        raise _other_body(request, "JSON (application/json)")
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise of_validation(error.errors()[0], list(model.model_fields)) from error


async def read_form(request: Request, most: int, most_files: int = _MOST_FIELDS) -> Form:
    """Return the form that a request has for its body, of at most ``most`` bytes and ``most_files`` files.

    A name may end in ``[]``, as OpenAI's client sends lists. Raises :class:`HttpError` for another body.
    """
    _check_encoding(request)
    if not is_form(request):
        raise _other_body(request, "a form (multipart/form-data)")
    form, given = Form(), await _parse(request, most, most_files)
    try:
        for key, value in given.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            elif value or name in _EMPTY:
                value = _parsed(value) if name in _LISTS else value
                form.fields[name] = _joined(form.fields.get(name), value)
    finally:
        await given.close()
    return form


async def _parse(request: Request, most: int, most_files: int) -> FormData:
    limits: dict[str, int] = {"max_files": most_files, "max_fields": _MOST_FIELDS, "max_part_size": most}
    parser = FormParser(request.headers, request.stream(), **limits)
    try:
        given = await parser.parse()
    except MultiPartException as error:
        raise HttpError(400, error.message, code="invalid_body") from error
    if not parser.ended:
        await given.close()
        message = "the form ends before the boundary that closes it; send the whole body"
        raise HttpError(400, message, code="invalid_body")
    return given


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON object with the fields of ``model``."""
    return _body("application/json", model.model_json_schema())


def form_body(model: type[BaseModel], *files: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """Return the OpenAPI description of a form with the fields of ``model`` and with ``files``."""
    schema = model.model_json_schema()
    for name in files:
        item = {"type": "string", "format": "binary"}
        schema["properties"][name] = {"anyOf": [item, {"type": "array", "items": item}]}
    schema["required"] = [*schema.get("required", ()), *needed]
    return _body("multipart/form-data", schema)


def _body(kind: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema}}}}


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_encoding(request: Request) -> None:
    """Raise :class:`HttpError` for a compressed body: its size in memory would have no limit."""
    given = request.headers.get("content-encoding", "identity").strip().lower()
    if given != "identity":
        message = f"Content-Encoding is {shortened(given)}; send the body as it is, without one"
        raise HttpError(415, message, code="invalid_body")


def _other_body(request: Request, accepted: str) -> HttpError:
    given = shortened(request.headers.get("content-type", "missing"))
    return HttpError(400, f"Content-Type is {given}; send {accepted}", code="invalid_body")


def _parsed(text: str) -> Any:
    """Return a list that is written as JSON, other text as it is."""
    try:
        return json.loads(text) if text.startswith("[") else text
    except (ValueError, RecursionError):
        return text


def _joined(before: Any, value: Any) -> Any:
    """Return a value, or the list of those of a field that came several times."""
    if before is None:
        return value
    return [*before, value] if isinstance(before, list) else [before, value]
