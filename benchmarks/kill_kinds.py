"""The kinds of work that the kill campaign kills, and what has to be true after that."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from bulk_kills import records, write_jobs
from kill_bundles import Build, Caches, Export, Int8
from kill_server import Ended, Moment, RunServer
from kill_tools import Kind, Tree, check, is_scratch, tree

from support.exports import list_anew
from support.fake_bundle import write_fake_bundle
from support.stub_hub import Repository


class Batch(Kind):
    """A bulk run into a directory that is empty, or has results of a part of the jobs, or of other ones."""

    name, share = "batch", 50

    def prepare(self, server: RunServer) -> None:
        """Write the bundle and the jobs, and do them, and others with the same ids."""
        write_fake_bundle(self.directory / "bundle")
        self._jobs = write_jobs(self.directory, 64, 12)
        lines = self._jobs.read_text().splitlines()
        other = self._jobs.with_name("other.jsonl")
        other.write_text("".join(json.dumps({**json.loads(line), "seed": 99}) + "\n" for line in lines[:8]))
        for jobs, name in ((other, "other"), (self._jobs, "done")):
            shutil.rmtree(self.place, ignore_errors=True)
            check(server.run("command", *self._arguments(jobs)))
            shutil.copytree(self.place, self.directory / name)
        self.usual = self.result()

    def _arguments(self, jobs: Path) -> list[object]:
        return ["batch", self.directory / "bundle", "--jobs", jobs, "--output", self.place, "--threads", 1]

    def reset(self, chance: random.Random) -> None:
        """Put earlier results there, or nothing."""
        shutil.rmtree(self.place, ignore_errors=True)
        how = chance.choice(["", "other", "torn"])
        if how:
            shutil.copytree(self.directory / ("other" if how == "other" else "done"), self.place)
        if how == "torn":
            # as a machine that went down leaves it: without the end of a line, or what is behind it
            ledger, cut = self.place / "results.jsonl", chance.choice([1, 30])
            lines = ledger.read_bytes().splitlines(keepends=True)
            stay = chance.randrange(3, 9)
            for record in map(json.loads, lines[stay if cut == 1 else stay - 1 :]):
                (self.place / record["files"][0]).unlink()
            ledger.write_bytes(b"".join(lines[:stay])[:-cut])

    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Do the jobs."""
        return server.run("command", *self._arguments(self._jobs), moment=moment)

    def result(self) -> Tree:
        """Return the files, and of the ledger what does not tell of times."""
        files = tree(self.place)
        files["results.jsonl"] = str(
            [(one["id"], one["files"], one["checksum"]) for one in records(self.place)]
        )
        return files

    def faults(self, before: Tree) -> list[str]:
        """Check that each image is the earlier or the new one, and that no record is lost."""
        found = [
            f"{name} is neither the earlier nor the new one"
            for name, value in tree(self.place).items()
            if not is_scratch(name)
            and name.endswith(".png")
            and value not in (before.get(name), self.usual.get(name))
        ]
        now = tree(self.place)
        lost = [name for name in before if name.endswith(".png") and name in self.usual and name not in now]
        return found + [f"{name} is lost" for name in lost]


class Downloads(Kind):
    """Files from a hub."""

    name, share = "downloads", 20

    def prepare(self, server: RunServer) -> None:  # noqa: ARG002
        """Put a repository on the hub."""
        self.place = self.directory.parent / "hub"
        self._found: Path | None = None
        self._source = self.directory / "repository"
        chance = random.Random(0)
        for number in range(6):
            path = self._source / f"part-{number}" / ("model.safetensors" if number % 2 else "config.json")
            path.parent.mkdir(parents=True)
            path.write_bytes(chance.randbytes(4_000_000 if number % 2 else 2_000))
        self.hub.repositories["somebody/adapter"] = Repository(self._source)
        self.usual = tree(self._source)

    def reset(self, chance: random.Random) -> None:  # noqa: ARG002
        """Forget what was downloaded."""
        shutil.rmtree(self.place, ignore_errors=True)

    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Download all."""
        ended = server.run("download", "somebody/adapter", moment=moment)
        self._found = _directory(ended)
        return ended

    def result(self) -> Tree:
        """Return the files as they are found."""
        return tree(self._found) if self._found else {}

    def faults(self, before: Tree) -> list[str]:  # noqa: ARG002
        """Check that no file is there that is not whole."""
        right = set(tree(self._source).values())
        return [
            f"{name} is taken for whole"
            for name, value in tree(self.place).items()
            if "/snapshots/" in name and value and value not in right
        ]

    def leftovers(self) -> list[str]:
        """Return the temporary files of the project: those of the hub's library are its own to remove."""
        return [name for name in super().leftovers() if not name.endswith(".incomplete")]


class Copies(Kind):
    """Copies of a bundle that lies elsewhere."""

    name, share = "copies", 15

    def prepare(self, server: RunServer) -> None:
        """Write the bundle, and copy it."""
        write_fake_bundle(self.directory / "bundle")
        (self.directory / "bundle" / "unet" / "model.onnx.data").write_bytes(
            random.Random(0).randbytes(1 << 24)
        )
        list_anew(self.directory / "bundle")
        check(self.run(server))
        self.usual = self.result()

    def reset(self, chance: random.Random) -> None:  # noqa: ARG002
        """Forget the copy."""
        shutil.rmtree(self.place, ignore_errors=True)

    def run(self, server: RunServer, moment: Moment = Moment()) -> Ended:  # noqa: B008
        """Copy."""
        return server.run("copy", f"file://{self.directory / 'bundle'}", self.place, moment=moment)


KINDS: tuple[type[Kind], ...] = (Export, Int8, Build, Batch, Caches, Downloads, Copies)


def _directory(ended: Ended) -> Path | None:
    found = [line.partition(" ")[2] for line in ended.said.splitlines() if line.startswith("directory: ")]
    return Path(found[0]) if found else None
