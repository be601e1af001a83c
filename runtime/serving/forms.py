"""Requests that are forms (multipart/form-data): fields as text, images as files."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile

from controlnext.runtime.serving.errors import HttpError, of_validation, shortened

Fields = TypeVar("Fields", bound=BaseModel)

_MOST_FIELDS = 100
_EMPTY = ("prompt", "negative_prompt")
"""Fields that may be empty; browsers send the others empty where they were not filled in."""

_LISTS = ("control_scale",)
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
                raise HttpError(400, f"{shortened(name)} {what}; files: {', '.join(files)}", param=name)
        for name in files:
            if name in self.fields:
                raise HttpError(400, f"{name} is text; send it as a file", param=name, code="invalid_value")
        try:
            return model.model_validate(self.fields)
        except ValidationError as error:
            raise of_validation(error.errors()[0], known) from error


async def read_form(request: Request, most: int) -> Form:
    """Return the form that a request has for its body, of at most ``most`` bytes.

    A name may end in ``[]``, as OpenAI's client sends lists. Raises :class:`HttpError` for another body.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HttpError(
            400,
            f"Content-Type is {shortened(kind) or 'missing'}; send a form (multipart/form-data)",
            code="invalid_body",
        )
    form = Form()
    limits = {"max_files": _MOST_FIELDS, "max_fields": _MOST_FIELDS, "max_part_size": most}
    async with request.form(**limits) as given:
        for key, value in given.multi_items():
            name = key.removesuffix("[]")
            if isinstance(value, UploadFile):
                form.files.setdefault(name, []).append(await value.read())
            elif value or name in _EMPTY:
                value = _parsed(value) if name in _LISTS else value
                form.fields[name] = _joined(form.fields.get(name), value)
    return form


def form_body(model: type[BaseModel], *files: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """Return the OpenAPI description of a form with the fields of ``model`` and with ``files``."""
    schema = model.model_json_schema()
    for name in files:
        item = {"type": "string", "format": "binary"}
        schema["properties"][name] = {"anyOf": [item, {"type": "array", "items": item}]}
    schema["required"] = [*schema.get("required", ()), *needed]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _parsed(text: str) -> Any:
    """Return a list that is written as JSON, other text as it is."""
    try:
        return json.loads(text) if text.startswith("[") else text
    except ValueError:
        return text


def _joined(before: Any, value: Any) -> Any:
    """Return a value, or the list of those of a field that came several times."""
    if before is None:
        return value
    return [*before, value] if isinstance(before, list) else [before, value]
