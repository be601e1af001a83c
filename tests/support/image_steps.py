"""Carries out a Dockerfile in a directory that stands for the root of its image, without a container engine.

What is done as it stands: FROM, ARG, ENV, WORKDIR, COPY (of what ``.dockerignore`` lets a build see, and from
other stages), USER, ENTRYPOINT, CMD, HEALTHCHECK. What has a stand-in, since a test downloads nothing and has
no root of its own:

- the base image: the suite's Python, and nothing else;
- absolute paths: below the directory;
- ``python -m venv``: without pip in it;
- ``pip install .[EXTRAS]``: builds and installs the wheel of what was copied, with the suite's setuptools;
  other packages are links to the suite's, each of which has to be pinned by the constraints;
- ``useradd``: makes the home directory. Programs run as the user of the test.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from support.dockerfiles import Instruction, copy_from_context
from support.wheels import add_wheel, build_wheel, make_environment, needed

BASE = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
"""The environment of the base images."""


@dataclass
class ImageSteps:
    """A build: the stage that it is at lies at ``root``, earlier ones beside it, by their names."""

    root: Path
    context: Path
    variables: dict[str, str] = field(default_factory=lambda: dict(BASE))
    arguments: dict[str, str] = field(default_factory=dict)
    directory: str = "/"
    user: str = "0"
    started: dict[str, list[str]] = field(default_factory=dict)
    exposed: set[str] = field(default_factory=set)
    stage: str = ""

    def carry_out(self, step: Instruction) -> None:
        """Do one instruction."""
        actions: Mapping[str, Callable[[Instruction], None]] = {
            "ARG": self._arg,
            "FROM": self._from,
            "RUN": self._run,
            "COPY": self._copy,
            "ENV": self._env,
            "WORKDIR": self._workdir,
            "USER": self._user,
            "EXPOSE": lambda given: self.exposed.update(given.words),
            "STOPSIGNAL": self._start_with,
            "ENTRYPOINT": self._start_with,
            "CMD": self._start_with,
            "HEALTHCHECK": self._healthcheck,
        }
        # what a shell of the image gets to see is for it; JSON lists are not for a shell
        plain = step if step.text.startswith("[") else step.with_values({**self.arguments, **self.variables})
        actions[step.name](plain)

    def place(self, path: str) -> Path:
        """Return where a path of the image lies."""
        return self.root / (Path(self.directory) / path).relative_to("/")

    def environment(self) -> dict[str, str]:
        """Return the variables of a program in the image, with paths of the directory."""
        found = [self.place(entry) for entry in self.variables["PATH"].split(":")]
        inside = [str(path) for path in found if path.is_dir()]
        home = {"HOME": str(self.place("/home/controlnext"))}
        return {**self.variables, **home, "PATH": ":".join([*inside, "/usr/bin", "/bin"])}

    def _arg(self, step: Instruction) -> None:
        name, _, value = step.text.partition("=")
        self.arguments[name] = value

    def _from(self, step: Instruction) -> None:
        if self.root.exists():
            self.root.rename(self.root.with_name(self.stage))
        _, _, self.stage = step.text.partition(" AS ")
        self.root.mkdir()
        self.variables, self.directory, self.user = dict(BASE), "/", "0"

    def _env(self, step: Instruction) -> None:
        self.variables.update(word.split("=", 1) for word in step.words)

    def _workdir(self, step: Instruction) -> None:
        self.directory = str(Path(self.directory) / step.text)
        self.place(".").mkdir(parents=True, exist_ok=True)

    def _user(self, step: Instruction) -> None:
        self.user = step.text

    def _copy(self, step: Instruction) -> None:
        options, step = step.options()
        *sources, target = step.words
        if "from" in options:
            stage = self.root.with_name(options["from"])
            for source in sources:
                copied = stage / source.removeprefix("/")
                shutil.copytree(copied, self.place(target), symlinks=True)
            return
        copy_from_context(self.context, sources, self.place(target), target.endswith(("/", ".")))

    def _start_with(self, step: Instruction) -> None:
        self.started[step.name] = step.words

    def _healthcheck(self, step: Instruction) -> None:
        _, step = step.options()
        command = Instruction("HEALTHCHECK", step.text.removeprefix("CMD").strip())
        self.started["HEALTHCHECK"] = command.words

    def _run(self, step: Instruction) -> None:
        for command in step.text.split(" && "):
            words = shlex.split(command)
            if words[:3] == ["python", "-m", "venv"]:
                self.place(words[3]).parent.mkdir(parents=True, exist_ok=True)
                make_environment(self.place(words[3]))
            elif words[0].endswith("/bin/pip"):
                self._pip(words)
            elif words[0] == "useradd":
                self.place(f"/home/{words[-1]}").mkdir(parents=True)
            else:
                raise AssertionError(f"RUN {command}: nothing stands in for it; see support/image_steps.py")

    def _pip(self, words: list[str]) -> None:
        action, cache, option, constraints, what = words[1:]
        assert (action, cache, option) == ("install", "--no-cache-dir", "--constraint")
        found = re.fullmatch(r"\.\[([\w,]+)\]", what)
        assert found, f"pip install {what}: is to install what was copied, with extras"
        extras = found[1].split(",")
        target = self.root.with_name(f"wheel-of-{self.root.name}")
        wheel = build_wheel(self.place("."), target)
        pins = re.findall(r"^([\w.-]+)==", self.place(constraints).read_text(), flags=re.MULTILINE)
        assert needed(wheel, extras) <= {canonicalize_name(name) for name in pins}
        add_wheel(wheel, self.place(words[0]).parents[1], extras)
        shutil.rmtree(target)
