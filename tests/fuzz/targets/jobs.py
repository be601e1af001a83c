"""Files of jobs for ``controlnext batch``, and the earlier results in its directory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any, ClassVar

from PIL import Image

from controlnext.cli.app import call, make_application
from fuzz.bulk_runs import check_ledger, contents, copied, run_jobs
from fuzz.makers import MAKERS
from fuzz.odd_files import odd_image
from fuzz.proposals import OUTSIDE, VALUES, bytes_change, file_change, files_of, json_change
from fuzz.target import Case, Expected, Refused, Target, digest

LINES, TABLE, WHICH = "jobs.jsonl", "jobs.parquet", "which.txt"
LEDGER = "results/results.jsonl"
COMMON: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}
JOBS: tuple[dict[str, Any], ...] = (
    {"id": "first", "prompt": "a cat", "control_image": "control.png", "seed": 1, **COMMON},
    {
        **{"id": "all", "prompt": "a dog", "control_image": "control.png", "image": "edges/a.png", "seed": 2},
        **{"mask_image": "edges/b.png", "strength": 0.9, "negative_prompt": "grey", "guidance_scale": 3.0},
        **{"control_scale": 0.9, "sampler": "euler", "num_images_per_prompt": 2, "control_start": 0.0},
        **{"control_end": 1.0, "guidance_end": 1.0, "cache_interval": 1, "lora": {"ink.safetensors": 0.5}},
        **{"padding_mask_crop": 2, "overlay": False, "vae_tiling": False, **COMMON},
    },
    {"prompt": "a bird", "control_glob": "edges/*.png", "seed": 3, **COMMON},
)
IDS = (
    *(
        "FIRST",
        "first",
        "first-1",
        "results",
        "results.jsonl",
        "CON",
        "nul.txt",
        ".lock",
        "..",
        "-x",
        "a" * 128,
    ),
    *(
        "a" * 129,
        "a/b",
        "a\\b",
        "é",
        "x\n",
        "x\0",
        "x ",
        "x.",
        1,
        1.5,
        True,
        -1,
        2**70,
        "all-1",
        "line-3",
        "3",
    ),
)
PATHS = (
    *(
        "../outside/*",
        "*" * 200,
        "[",
        "[!",
        "a/**/**/**/**/x",
        "edges/../../outside/*.txt",
        "x" * 5000,
        "**/*",
    ),
    *(
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/environ",
        "edges",
        "edges/a.png\0",
        "EDGES/A.PNG",
        OUTSIDE,
        "**",
    ),
    *(["control.png"] * 3, [["control.png"]], {"control.png": 1}, "hf://a/b", "s3://a/b", "\ud800"),
)
TEXTS = (
    *("\ufeff", "\0", "{}\n" * 300, "[]\n", "null\n", '{"id": 1}\n' * 3, "\n\n\n", '{"id": "x"}', "{", "'"),
    *('{"prompt": "' + "a" * 10**6 + '"}\n', '{"a":' * 100_000, '{"id":"x","prompt":"\\ud800"}\n'),
    *("id,prompt\n1,a cat\n", "PAR1", '{"lora": {"/dev/zero": 1}, "prompt": "x"}\n'),
)
RECORDS = (
    {"id": "../x", "job": "", "files": ["../../outside/canary.txt"]},
    {"id": "old", "job": "", "files": ["/etc/passwd", "a/../../x", "", ".", "..", "\0"]},
    *(
        {"id": "first", "job": "x", "files": value}
        for value in ("first.png", [], [1], [None], {}, 1, [["a"]])
    ),
    {"id": "first", "job": "x", "error": {"a": "\x1b[31m"}},
    {"id": "\x1b[31m", "job": "x", "error": "\x1b[31m", "files": ["first.png", "first.png"], "checksum": 1},
)


class Jobs(Target):
    """Does jobs in a directory with results of an earlier run."""

    name: ClassVar[str] = "jobs"
    reads_anywhere = True

    def write_sound(self, directory: Path) -> None:
        """Write a bundle, images, jobs in both forms, and the results of a part of them."""
        import pyarrow
        from pyarrow import parquet

        from support.fake_bundle import write_fake_bundle
        from support.fake_loras import write_fake_lora

        write_fake_bundle(directory / "bundle", shallow=True, encoder=True, lora_rank=4)
        write_fake_lora(directory / "ink.safetensors", 1)
        (directory / "edges").mkdir()
        for name in ("control.png", "edges/a.png", "edges/b.png"):
            (directory / name).write_bytes(MAKERS["image"]())
        old = {**JOBS[0], "id": "old"}
        _write_lines(directory / "old.jsonl", [JOBS[0], old])
        _in_a_child(directory, "old.jsonl", directory / "results")
        _write_lines(directory / LINES, JOBS)
        columns: dict[str, list[Any]] = {key: [job.get(key) for job in JOBS] for key in JOBS[0]}
        parquet.write_table(pyarrow.table(columns), directory / TABLE)
        (directory / WHICH).write_text(LINES)

    def propose(self, sound: Path, rng: Random) -> Case:
        """Change the jobs most of the time, else what they read, or the earlier results."""
        kind = rng.choice(
            ("line", "line", "line", "value", "value", "text", "bytes", "table", "ledger", "file")
        )
        change, expected = getattr(self, f"_{kind}")(sound, rng)
        return Case(self.name, change, expected)

    def _line(self, sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        change = json_change(sound / LINES, LINES, rng)
        whole = not change["path"] or change["path"][0] == 0 or change["kind"] == "json-text"
        return [change], "any" if whole else "same"

    def _value(self, _sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        key = rng.choice(
            ("id", "id", *("control_image", "image", "mask_image", "control_glob", "lora") * 2, "x")
        )
        value = rng.choice(IDS if key == "id" else (*PATHS, *VALUES))
        if key == "lora" and isinstance(value, str):
            value = {value: 1.0}
        line = rng.choice((1, 2))
        change = {"kind": "json-set", "file": LINES, "path": [line, key], "value": value}
        return [change], "same"

    def _text(self, sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        if rng.random() < 0.3:
            return [{"kind": "write", "file": LINES, "content": rng.choice(TEXTS)}], "any"
        content = (sound / LINES).read_bytes()
        at = rng.choice([0, *(n + 1 for n, byte in enumerate(content) if byte == 10)])
        new = rng.choice(TEXTS).encode("utf-8", "surrogatepass").hex()
        return [{"kind": "bytes", "file": LINES, "at": at, "remove": 0, "insert": new}], "any"

    def _bytes(self, sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        return [bytes_change((sound / LINES).read_bytes(), LINES, rng)], "any"

    def _table(self, sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        which = {"kind": "write", "file": WHICH, "content": TABLE}
        return [which, bytes_change((sound / TABLE).read_bytes(), TABLE, rng)], "any"

    def _ledger(self, sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        jobs = {"kind": "write", "file": WHICH, "content": rng.choice((LINES, LINES, TABLE))}
        if rng.random() < 0.5:
            return [jobs, json_change(sound / LEDGER, LEDGER, rng)], "same"
        content = (json.dumps(rng.choice(RECORDS)) + "\n").encode().hex()
        return [jobs, {"kind": "bytes", "file": LEDGER, "at": 0, "remove": 0, "insert": content}], "same"

    def _file(self, sound: Path, rng: Random) -> tuple[list[dict[str, Any]], Expected]:
        name = rng.choice(["edges/a.png", *(f"results/{one}" for one in files_of(sound / "results"))])
        if name.startswith("results") or rng.random() < 0.5:
            # a table of an earlier run, and what a killed one leaves, beside what is there
            name = rng.choice((name, "results/results.parquet", "results/.parts", "results/.x.partial"))
            return [file_change(name, rng) if (sound / name).exists() else _put(name, rng)], "any"
        return [odd_image(name, rng)], "same"

    def attempt(self, directory: Path, output: Path) -> str:
        """Do the jobs; return a digest of the image of the first."""
        results = output / "results"
        shutil.copytree(directory / "results", results, symlinks=True, copy_function=copied)
        before = contents(results)
        try:
            run_jobs(directory, directory / (directory / WHICH).read_text(), results)
        except Refused:
            if contents(results) != before:
                raise AssertionError("refused, and the results are others than before") from None
            shutil.rmtree(results)
            raise
        check_ledger(results)
        image = results / "first.png"
        return digest(Image.open(image)) if image.exists() else "none"


def _put(name: str, rng: Random) -> dict[str, Any]:
    return rng.choice(
        (
            {"kind": "directory", "file": name},
            {"kind": "link", "file": name, "to": "../../outside"},
            {"kind": "link", "file": name, "to": "../../outside/canary.txt"},
            {"kind": "write", "file": name, "content": "x"},
            {
                "kind": "write",
                "file": f"{name}/{rng.choice(('x.jsonl', 'x.jsonl.lock', 'y'))}",
                "content": "{}\n",
            },
        )
    )


def _write_lines(file: Path, jobs: Any) -> None:
    file.write_text("".join(f"{json.dumps(job)}\n" for job in jobs))


def _in_a_child(directory: Path, jobs: str, results: Path) -> None:
    """Do jobs in a process of their own: this one must not have threads."""
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        assert status == 0, "the earlier jobs failed"
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    arguments = [
        "batch",
        directory / "bundle",
        "--jobs",
        directory / jobs,
        "--output",
        results,
        "--threads",
        1,
    ]
    arguments += ["--backend", "onnxruntime", "--device", "cpu"]
    status = call(make_application(), [str(argument) for argument in arguments], "controlnext")
    sys.stderr.flush()
    os._exit(status)


TARGETS = (Jobs(),)
