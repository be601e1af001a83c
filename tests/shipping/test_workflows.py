"""The workflows and the issue templates: what GitHub accepts, least rights, and commands that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.programs import program
from support.wheels import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = ROOT / ".github" / "ISSUE_TEMPLATE"
FORMS = [path for path in sorted(TEMPLATES.glob("*.yml")) if path.stem != "config"]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
OF_GITHUB = {"gh"}
"""Commands that GitHub's machines have and this project has not."""


def _jobs(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())["jobs"]


def _check(schema: str, *paths: Path) -> None:
    command = [program("check-jsonschema"), "--builtin-schema", schema, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("schema", ["vendor.github-workflows", "custom.github-workflows-require-timeout"])
def test_workflows_have_githubs_form_and_end_in_time(schema: str) -> None:
    assert {path.stem for path in WORKFLOWS} == {"checks", "docs", "wheels"}
    _check(schema, *WORKFLOWS)


def test_zizmor_finds_nothing() -> None:
    """Among others: actions pinned by commit, no credentials left, no text of others in commands."""
    command = [program("zizmor"), "--offline", "--no-progress", "--persona", "pedantic", *WORKFLOWS]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_rights_are_given_by_job(path: Path) -> None:
    """Those to write only to the jobs that publish, which run nothing of a change's own."""
    whole = yaml.safe_load(path.read_text())
    assert whole["permissions"] == {}
    assert whole["concurrency"]["group"].endswith("${{ github.ref }}")
    for job in whole["jobs"].values():
        writes = [right for right, kind in job["permissions"].items() if kind == "write"]
        if writes:
            assert job["if"].startswith(("github.ref == ", "startsWith(github.ref, 'refs/tags/"))
            assert not [step for step in job["steps"] if "actions/checkout" in step.get("uses", "")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_commands_are_targets_of_the_makefile_or_files(path: Path) -> None:
    """So that what is checked there can be checked anywhere."""
    commands = [step["run"] for job in _jobs(path).values() for step in job["steps"] if "run" in step]
    for line in "\n".join(commands).splitlines():
        command, *arguments = line.split()
        if command == "make":
            assert set(arguments) <= TARGETS, line
        else:
            assert command in OF_GITHUB or (ROOT / command).is_file(), line


def test_what_is_uploaded_is_where_the_targets_write() -> None:
    steps = [step for path in WORKFLOWS for job in _jobs(path).values() for step in job["steps"]]
    paths = {step["with"]["path"].rstrip("/") for step in steps if "upload" in step.get("uses", "")}
    written = re.findall(
        r"^(?:DIST :=|site_dir:) (\S+)$", _read("Makefile") + _read("mkdocs.yml"), re.MULTILINE
    )
    assert paths == set(written)


def _read(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_checks_run_with_versions_that_the_package_names() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    versions = _jobs(ROOT / ".github/workflows/checks.yml")["test"]["strategy"]["matrix"]["python"]
    assert versions == re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)


def test_issue_templates_have_githubs_form() -> None:
    assert {path.stem for path in FORMS} == {"bug", "feature"}
    _check("vendor.github-issue-forms", *FORMS)
    _check("vendor.github-issue-config", TEMPLATES / "config.yml")


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_has_what_githubs_forms_need(path: Path) -> None:
    """Name, description, fields with ids of their own, and at least one that has to be filled in."""
    form = yaml.safe_load(path.read_text())
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in fields]
    assert len(ids) == len(set(ids))
    labels = [field["attributes"]["label"] for field in fields]
    assert len(labels) == len(set(labels))
    assert any(field.get("validations", {}).get("required") for field in fields)
    named = re.findall(r"`([\w/]+\.md)`", path.read_text())
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_a_bug_is_reported_with_the_environment() -> None:
    """Whose command there is."""
    form = yaml.safe_load((TEMPLATES / "bug.yml").read_text())
    (field,) = [field for field in form["body"] if field.get("id") == "environment"]
    assert "`controlnext env`" in field["attributes"]["label"]
    assert field["validations"]["required"]
    assert (ROOT / "controlnext/cli/env.py").is_file()
