"""Requests to the server: paths, headers, bodies; several in a row, and at last one that is sound."""

from __future__ import annotations

import asyncio
import json
import logging
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from controlnext.runtime import Pipeline
from controlnext.runtime.serving.access_log import AccessLog
from controlnext.runtime.serving.app import make_app
from controlnext.runtime.serving.metrics import Metrics
from controlnext.runtime.serving.models import Models
from controlnext.runtime.serving.settings import ServerSettings
from fuzz.answers import Log, fault_of, fault_of_fields
from fuzz.http_calls import Answer, Call, ask, read_call, render_form
from fuzz.odd_files import odd_image
from fuzz.proposals import TEXTS, VALUES, bytes_change, json_change
from fuzz.sound_calls import HARMLESS, KEY, write_calls
from fuzz.target import Case, Target

CHANGED = 9
"""The most requests of a case that are changed."""
LAST, HARMLESS_CALL = "90-last", "80-harmless"
LIMITS: dict[str, Any] = {"max_steps": 4, "max_size": 64, "max_images": 2, "max_pixels": 1 << 16}
LIMITS |= {"max_frames": 4, "max_body": 1 << 20, "api_keys": (KEY,)}
HEADERS = (
    "Content-Type",
    "Content-Length",
    "Content-Encoding",
    "Transfer-Encoding",
    "Expect",
    "Range",
    "Host",
)
HEADERS += ("Authorization", "Origin", "X-Request-Id", "Accept", "Cookie", "X-Forwarded-For", "If-None-Match")
VALUES_OF_HEADERS = (
    *("", "0", "1", "99999999999", "-1", "9" * 5000, "gzip", "chunked", "100-continue", "é", "\x7f", ";;;,"),
    *("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 300),
    *("multipart/form-data; charset=utf-16; boundary=0a1b2c3d", "multipart/form-data; boundary=\xff"),
    *("multipart/form-data; charset=nonsense; boundary=0a1b2c3d", "multipart/form-data; charset=zlib"),
    *("application/json; charset=utf-7", "text/plain", "bytes=-", "bytes=5-2", "bytes=0-0,1-1," * 100),
    *("bytes=99999999999999999999-", "bytes=-0", "W/*", "Bearer", "Bearer " + "x" * 4000, "Basic \xe9"),
)
PATHS = (
    *("/v1/videos/../../etc/passwd", "/v1/videos/%2e%2e%2f", "/v1/videos/..%2f..%2fx/content", "//", "/v1"),
    *("/page/../../pyproject.toml", "/page/%2e%2e/x", "/page/%00", "/v1/models/..", "/v1/models/%ff%fe"),
    *("/" + "a" * 9000, "/v1/videos/" + "b" * 3000, "/v1/videos/{video}/content/x", "/openapi.json", "/docs"),
    *("/v1/models/%1b%5b31m", "/v1/videos/%0d%0aX: y", "/\ud800", "/é", "/v1/videos/", "/health/live", "/"),
)


class Requests(Target):
    """Asks a server of two bundles, without a network."""

    name: ClassVar[str] = "http"
    seconds: ClassVar[int] = 60

    def write_sound(self, directory: Path) -> None:
        """Write two bundles, a LoRA and the requests."""
        from support.fake_bundle import write_fake_bundle
        from support.fake_clips import write_fake_clips
        from support.fake_loras import write_fake_lora

        write_fake_bundle(directory / "toy", shallow=True, encoder=True, previews=True, lora_rank=4)
        write_fake_clips(directory / "clips")
        (directory / "loras").mkdir()
        write_fake_lora(directory / "loras" / "ink.safetensors", 1)
        (directory / "calls").mkdir()
        write_calls(directory / "calls")

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change about half of the requests; the last one stays, and one changes where it does not matter."""
        names = sorted(path.name.split(".")[0] for path in (sound / "calls").glob("*.head.json"))
        names = [name for name in names if name not in (LAST, HARMLESS_CALL)]
        chosen = rng.sample(names, rng.randint(CHANGED - 4, CHANGED))
        changes = [_change(sound / "calls", name, rng) for name in sorted(chosen)]
        return Case(self.name, [*changes, _harmless(rng)], "same")

    def attempt(self, directory: Path, output: Path) -> str:  # noqa: ARG002
        """Ask for all; return the image of the last request."""
        log = Log()
        for name in ("", "uvicorn.error"):
            logging.getLogger(name).addHandler(log)
        return asyncio.run(_Session(directory, log).all())


class _Session:
    """A server, and a client that asks it."""

    def __init__(self, directory: Path, log: Log) -> None:
        self._directory, self._log = directory, log
        self._places = [str(directory.parent)]

    async def all(self) -> str:
        bundles = [self._directory / name for name in ("toy", "clips")]
        settings = ServerSettings(**LIMITS, loras=str(self._directory / "loras"))
        metrics = Metrics()
        load = partial(Pipeline.load, backend="onnxruntime", device="cpu", threads=1, cache=False)
        models = Models(bundles, settings, load, metrics)
        app = make_app(models, settings, metrics, local=True)
        await models.start()
        async with app.router.lifespan_context(app):
            image = await self._ask_all(AccessLog(app, metrics))
        await models.close()
        return image

    async def _ask_all(self, application: Any) -> str:
        video, images = "video_x", dict[str, str]()
        for head in sorted((self._directory / "calls").glob("*.head.json")):
            name = head.name.split(".")[0]
            call = read_call(head, {"video": video})
            if call is None:
                continue
            answer = await self._asked(application, name, call)
            if answer.status == 200 and call.method == "POST" and call.path == "/v1/videos":
                video = json.loads(answer.body)["id"]
                await self._finished(application, name, video)
            if name in (LAST, HARMLESS_CALL):
                images[name] = _image_of(answer)
        if images.get(HARMLESS_CALL, "refused") not in ("refused", images[LAST]):
            raise AssertionError("a field that is not used changed the image")
        return images[LAST]

    async def _asked(self, application: Any, name: str, call: Call) -> Answer:
        answer = await ask(application, call)
        fault = None if call.leaves else "no answer"
        if answer.status and not call.leaves:
            fault = fault_of(answer, self._places)
        if self._log.failures:
            fault = "logged: " + "\n".join(self._log.failures)
        if fault:
            raise AssertionError(f"{name}, status {answer.status}: {fault}")
        return answer

    async def _finished(self, application: Any, name: str, video: str) -> None:
        """Wait for a clip to be completed, or to fail by a fault of the request."""
        headers = [(b"host", b"127.0.0.1"), (b"authorization", f"Bearer {KEY}".encode())]
        for _ in range(3000):
            state = json.loads(
                (
                    await self._asked(
                        application, name, Call("GET", f"/v1/videos/{video}", b"", headers, b"")
                    )
                ).body
            )
            if state["status"] == "failed" and (fault := fault_of_fields(state["error"])):
                raise AssertionError(f"{name}: {fault}")
            if state["status"] in ("completed", "failed"):
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{name}: the clip does not end")


def _image_of(answer: Answer) -> str:
    """Return the image, or that the request is refused."""
    if answer.status != 200:
        return "refused"
    return str(json.loads(answer.body)["data"][0]["b64_json"])


def _change(calls: Path, name: str, rng: Random) -> dict[str, Any]:
    """Return a change of a request: most often of its body."""
    head = calls / f"{name}.head.json"
    body = next((file for file in calls.glob(f"{name}.*.json") if file != head), None)
    if body is None or rng.random() < 0.25:
        return _of_head(head, rng)
    file = f"calls/{body.name}"
    if body.name.endswith(".form.json"):
        return _of_form(body, file, rng)
    content = json.loads(body.read_text())
    kind = rng.choice(("json", "json", "json", "json", "image", "image", "bytes", "text"))
    images = [key for key in ("image", "mask", "control_image", "input_reference") if key in content]
    if kind == "image" and images:
        before = rng.choice(("", "", "data:image/png;base64,", "data:text/html;base64,", "file:///etc/", " "))
        return {
            **{"kind": "json-image", "file": file, "path": [rng.choice(images)], "before": before},
            **{"made": odd_image("", rng), "cut": rng.choice((0, 0, 0, 1, 4, 40))},
        }
    if kind == "bytes":
        return bytes_change(body.read_bytes(), file, rng)
    if kind == "text":
        return {"kind": "write", "file": file, "content": rng.choice(TEXTS)}
    return json_change(body, file, rng)


def _of_form(body: Path, file: str, rng: Random) -> dict[str, Any]:
    kind = rng.choice(("json", "json", "raw", "image", "value", "head"))
    content = json.loads(body.read_text())
    if kind == "raw":
        raw = render_form(content)
        changed = bytes_change(raw, file, rng)
        # what stays of it is no JSON and is sent as it is
        start, end = changed["at"], changed["at"] + changed["remove"]
        new = raw[:start] + bytes.fromhex(changed["insert"]) + raw[end:]
        return {"kind": "bytes", "file": file, "at": 0, "remove": 1 << 30, "insert": new.hex()}
    part = rng.randrange(len(content["parts"]))
    if kind == "image":
        files = [n for n, one in enumerate(content["parts"]) if isinstance(one["content"], dict)]
        made = odd_image(file, rng)
        new = {"maker": made["maker"], "options": made["options"]}
        return {
            "kind": "json-set",
            "file": file,
            "path": ["parts", rng.choice(files), "content"],
            "value": new,
        }
    if kind == "value":
        text = rng.choice((*TEXTS, *map(str, VALUES), "[" * 100_000, "{" * 100_000))
        return {"kind": "json-set", "file": file, "path": ["parts", part, "content"], "value": text}
    if kind == "head":
        lines = [rng.choice(_PART_HEADS), rng.choice(("X: y", "Content-Type: a/b", "", "x" * 9000, ":"))]
        return {"kind": "json-set", "file": file, "path": ["parts", part, "head"], "value": lines}
    return json_change(body, file, rng)


_PART_HEADS = (
    *(
        'Content-Disposition: form-data; name="image"; filename="../../x.png"',
        "Content-Disposition: form-data",
    ),
    *(
        'Content-Disposition: form-data; name="\x1b[31m"',
        'Content-Disposition: form-data; name=""',
        "nothing",
    ),
    *('Content-Disposition: form-data; name="prompt"; filename="/etc/passwd"', "Content-Disposition: x"),
    *(
        f'Content-Disposition: form-data; name="{"n" * 9000}"',
        'Content-Disposition: form-data; name="prompt"',
    ),
    *("Content-Disposition: form-data; name*=utf-8''%ff; filename*=utf-8''%2e%2e", "X: y"),
)


def _of_head(head: Path, rng: Random) -> dict[str, Any]:
    file = f"calls/{head.name}"
    kind = rng.choice(("json", "header", "header", "path", "query", "chunk"))
    if kind == "header":
        value = rng.choice((*VALUES_OF_HEADERS, *map(str, VALUES)))
        path: list[Any] = ["headers", rng.choice(HEADERS)]
        return {"kind": "json-set", "file": file, "path": path, "value": value}
    if kind == "path":
        return {"kind": "json-set", "file": file, "path": ["path"], "value": rng.choice(PATHS)}
    if kind == "query":
        key = rng.choice(("limit", "after", "order", "variant", "x", "", "%00"))
        value = f"{key}={rng.choice((*map(str, VALUES), '9' * 5000))}"
        return {"kind": "json-set", "file": file, "path": ["query"], "value": value}
    if kind == "chunk":
        path, value = rng.choice(((["chunk"], 1), (["chunk"], 7), (["leaves"], True), (["method"], "PUT")))
        return {"kind": "json-set", "file": file, "path": path, "value": value}
    return json_change(head, file, rng)


def _harmless(rng: Random) -> dict[str, Any]:
    """Return a change of a field that is not used, or of how the body is written."""
    file, key = f"calls/{HARMLESS_CALL}", rng.choice(list(HARMLESS))
    value = rng.choice((*VALUES, "low", "high", "natural", "standard"))
    return rng.choice(
        (
            {"kind": "json-set", "file": f"{file}.body.json", "path": [key], "value": value},
            {
                "kind": "json-set",
                "file": f"{file}.head.json",
                "path": ["headers", "X-Other"],
                "value": str(value),
            },
            {
                "kind": "json-set",
                "file": f"{file}.head.json",
                "path": ["chunk"],
                "value": rng.choice((1, 100)),
            },
            {"kind": "json-remove", "file": f"{file}.body.json", "path": [key]},
        )
    )


TARGETS = (Requests(),)
