"""The page at ``/``, on which a bundle is tried: static files, read once, and the headers that confine them.

The page calls the routes under ``/v1`` as any other client does; nothing here knows a model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response

FOLDER = Path(__file__).with_name("page")
INDEX = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The files of the page by suffix: modules are refused by browsers under another type than JavaScript's, and
the types that a machine's registry knows are not to be relied on."""

POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # asked again every time, answered by 304: a page of one release never runs with a script of another
    "Cache-Control": "no-cache",
}


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    etag: str


def add_page(app: FastAPI) -> None:
    """Add ``GET /`` and ``GET /page/{file}`` to ``app``. They need no key: the page itself is no secret, and
    a browser sends none with them."""
    files = {path.name: _read(path) for path in sorted(FOLDER.iterdir()) if path.suffix in MEDIA_TYPES}
    router = APIRouter(include_in_schema=False)

    @router.head("/")
    @router.get("/")
    async def index(request: Request) -> Response:
        return _answer(files[INDEX], request)

    @router.head("/page/{file}")
    @router.get("/page/{file}")
    async def page_file(file: str, request: Request) -> Response:
        if file not in files:
            raise HTTPException(404, f"the page has no file {file!r}; it has {', '.join(files)}")
        return _answer(files[file], request)

    app.include_router(router)


def _read(path: Path) -> _File:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:32]
    return _File(content, MEDIA_TYPES[path.suffix], f'"{digest}"')


def _answer(file: _File, request: Request) -> Response:
    """Return the file, or 304 where the browser has it already."""
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)
