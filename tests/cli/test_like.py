"""``run --like`` makes an image again, bit for bit, and ``inspect`` shows what it was made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from controlnext.bundle.files import sha256
from support.cli import Cli, assert_refused
from support.fake_bundle import write_fake_bundle
from support.fake_loras import write_fake_lora
from support.recipe import drawing
from support.runs import run

SECRET = "hf_" + "a" * 24


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake_bundle(tmp_path_factory.mktemp("bundles") / "fake", lora_rank=8, encoder=True)


@pytest.fixture
def made(cli: Cli, tmp_path: Path, bundle: Path, outline: Path) -> dict[str, Any]:
    """Make two images with many options; return these."""
    loras = [write_fake_lora(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("ba")]
    flags = {"prompt": "a red circle, \u00e9", "negative_prompt": "green", "guidance": 2.5, "steps": 3}
    flags |= {"sampler": "euler", "seed": 4, "scale": 0.6, "control_start": 0.3, "guidance_end": 0.7}
    flags |= {"control_image": outline, "num_images": 2, "lora": [f"{loras[0]}:0.5", str(loras[1])]}
    flags |= {"width": 32, "height": 16, "preprocess": "none"}
    assert run(cli, bundle, **flags, output=tmp_path / "first.png").status == 0
    return flags


@pytest.mark.usefixtures("made")
def test_the_same_image_bit_for_bit(cli: Cli, tmp_path: Path, bundle: Path) -> None:
    """Files are found beside the image; also what a repetition made can be repeated."""
    for name, like in (("second", "first-2"), ("third", "second-1")):
        done = run(cli, bundle, like=tmp_path / f"{like}.png", output=tmp_path / f"{name}.png")
        assert (done.status, done.err) == (0, "")
        for number in (1, 2):
            again, first = (tmp_path / f"{one}-{number}.png" for one in (name, "first"))
            assert again.read_bytes() == first.read_bytes()


@pytest.mark.usefixtures("made")
def test_from_another_directory_it_is_the_same_file(
    cli: Cli, tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the paths are from there, files that are given again among them."""
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(tmp_path.parent)
    here = Path(tmp_path.name)
    for output, given in (("second", {}), ("third", {"control_image": here / "outline.png"})):
        done = run(cli, bundle, like=here / "first-2.png", **given, output=away / f"{output}.png")
        assert (done.status, done.err) == (0, "")
        assert (away / f"{output}-1.png").read_bytes() == (tmp_path / "first-1.png").read_bytes()


def test_given_options_count_more(cli: Cli, tmp_path: Path, bundle: Path, made: dict[str, Any]) -> None:
    drawing(3, 64, 48).save(tmp_path / "other.png")
    changed = {"control_image": tmp_path / "other.png", "sampler": "unipc", "num_images": 1, "seed": 0}
    expected = tmp_path / "expected.png"
    assert run(cli, bundle, **made | changed, output=expected).status == 0
    done = run(cli, bundle, like=tmp_path / "first-1.png", **changed, output=tmp_path / "now.png")
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "now.png").read_bytes() != (tmp_path / "first-1.png").read_bytes()
    with Image.open(expected) as wanted, Image.open(tmp_path / "now.png") as found:
        assert found.tobytes() == wanted.tobytes()
    # steps in another form take the place of their number
    other = {"timesteps": "900,20", "sampler": "euler", "output": tmp_path / "steps.png"}
    assert run(cli, bundle, like=tmp_path / "first-1.png", **other).status == 0


def test_a_start_image_and_its_mask(cli: Cli, tmp_path: Path, bundle: Path, outline: Path) -> None:
    drawing(2, 64, 48).save(tmp_path / "start.png")
    Image.new("L", (64, 48), 255).save(tmp_path / "mask.png")
    flags = {"image": tmp_path / "start.png", "mask_image": tmp_path / "mask.png", "strength": 0.5}
    flags |= {"prompt": "a", "control_image": outline, "steps": 4, "padding_mask_crop": 8}
    assert run(cli, bundle, **flags, output=tmp_path / "first.png").status == 0
    done = run(cli, bundle, like=tmp_path / "first.png", output=tmp_path / "again.png")
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "first.png").read_bytes()


@pytest.mark.usefixtures("made")
def test_inspect_shows_it(cli: Cli, tmp_path: Path, bundle: Path, outline: Path) -> None:
    shown = cli("inspect", tmp_path / "first-2.png", "--json")
    assert (shown.status, shown.err) == (0, "")
    found = json.loads(shown.out)
    recipe = found["recipe"]
    assert recipe["bundle"]["name"] == bundle.name
    assert recipe["bundle"]["manifest_sha256"] == sha256(bundle / "controlnext.json")
    assert recipe["arguments"]["seed"] == 4
    assert recipe["files"]["control_image"] == [{"name": outline.name, "sha256": sha256(outline)}]
    assert (recipe["number"], recipe["count"]) == (2, 2)
    prompt, negative, facts = found["parameters"].splitlines()
    assert (prompt, negative) == ("a red circle, \u00e9", "Negative prompt: green")
    assert facts.startswith("Steps: 3, Sampler: euler, CFG scale: 2.5, Seed: 4, Size: 32x16, Model hash: ")
    # no directory of this machine
    assert str(tmp_path) not in shown.out.replace(str(tmp_path / "first-2.png"), "")
    people = cli("inspect", tmp_path / "first-2.png")
    assert people.status == 0
    assert "Negative prompt: green" in people.out
    assert "Image 2 of 2" in people.out


def test_without_metadata_and_in_other_formats_nothing_is_written(
    cli: Cli, tmp_path: Path, bundle: Path, outline: Path
) -> None:
    flags = {"prompt": "a", "control_image": outline, "steps": 1}
    assert run(cli, bundle, **flags, no_metadata=True, output=tmp_path / "bare.png").status == 0
    with Image.open(tmp_path / "bare.png") as image:
        assert image.info == {}
    assert_refused(cli("inspect", tmp_path / "bare.png"), "bare.png has no arguments in it")
    assert run(cli, bundle, **flags, output=tmp_path / "image.webp").status == 0
    assert_refused(cli("inspect", tmp_path / "image.webp"), "it is not a PNG file, or a damaged one")
    assert_refused(run(cli, bundle, like=tmp_path / "bare.png"), "bare.png has no arguments in it")


def test_secrets_are_not_written(
    cli: Cli,
    tmp_path: Path,
    bundle: Path,
    outline: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MY_API_KEY", "a very long key")
    output = tmp_path / "image.png"
    prompt = f"a {SECRET} and a very long key"
    assert run(cli, bundle, prompt=prompt, control_image=outline, steps=1, output=output).status == 0
    content = output.read_bytes()
    assert SECRET.encode() not in content
    assert b"a very long key" not in content
    again = run(cli, bundle, like=output, output=tmp_path / "again.png")
    assert again.status == 0
    assert "*** in place of what looked like a secret" in caplog.text


@pytest.mark.usefixtures("made")
def test_what_is_not_as_it_was_is_told(
    cli: Cli,
    tmp_path: Path,
    bundle: Path,
    outline: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = tmp_path / "first-1.png"
    other = write_fake_bundle(tmp_path / "other", lora_rank=9)
    done = run(cli, other, like=first, output=tmp_path / "out.png")
    assert done.status == 0
    assert f"made with another bundle, {bundle.name} (sdxl, fp32)" in caplog.text
    drawing(3, 64, 48).save(outline)
    done = run(cli, bundle, like=first, output=tmp_path / "out.png")
    assert_refused(done, "was made with the control_image outline.png", "give it with --control-image")


def _png(path: Path, **texts: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def _recipe(**changes: Any) -> str:
    made = {"name": "b", "manifest_sha256": "0", "family": "sdxl", "variant": "v1", "precision": "fp32"}
    recipe = {"schema": 1, "version": "0", "bundle": made, "backend": "", "arguments": {"prompt": "a"}}
    return json.dumps({**recipe, **changes})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["cannot read the arguments"]),
        ("[" * 50_000, ["cannot read the arguments"]),
        (_recipe(schema=7), ["schema 7", "install a newer controlnext"]),
        (_recipe(arguments=[]), ["cannot read the arguments"]),
        ("x" * 300_000, ["300000 letters"]),
        (_recipe(arguments={"prompt": ["a", "b"]}), ["several prompts", "batch"]),
        (_recipe(preprocessor_model=["hub/id"]), ["--preprocessor-model", "hub/id"]),
        (_recipe(files={"control_image": [{"name": "/etc/passwd", "sha256": "0"}]}), ["/etc/passwd"]),
        (_recipe(files={"control_image": [{"name": "../outline.png", "sha256": "0"}]}), ["../outline.png"]),
        (_recipe(files={"control_image": [{"name": "a\0\x1b[31mb", "sha256": ""}]}), ["\\x1b[31m"]),
        (_recipe(files={"lora": [{"name": "x", "sha256": ""}]}), ["how strong its LoRAs are"]),
        (_recipe(arguments={"prompt": 3}), ["--prompt is 3"]),
        (_recipe(arguments={"prompt": "a", "num_inference_steps": "x"}), ["--steps is 'x'"]),
        (_recipe(arguments={"prompt": "a", "control_scale": {"a": 1}}), ["scale"]),
        (_recipe(arguments={"prompt": "a", "timesteps": {"a": 1}}), ["timesteps"]),
        (_recipe(arguments={"prompt": "a", "seed": "x"}), ["--seed is 'x'"]),
    ],
)
def test_hostile_text_is_one_line(
    cli: Cli, tmp_path: Path, bundle: Path, outline: Path, text: str, words: list[str]
) -> None:
    path = _png(tmp_path / "odd.png", controlnext=text)
    given = {} if "files" in text or "hub/id" in text else {"control_image": outline}
    assert_refused(run(cli, bundle, like=path, **given, output=tmp_path / "out.png"), *words)


def test_damaged_files_are_one_line(cli: Cli, tmp_path: Path) -> None:
    whole = _png(tmp_path / "whole.png", controlnext=_recipe()).read_bytes()
    for number, content in enumerate((b"", whole[:60], whole.replace(b"tEXtcontrol", b"tEXtc\xffntrol"))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(content)
        assert_refused(cli("inspect", path), f"{number}.png")


def test_images_of_other_web_uis_are_shown_and_not_made(cli: Cli, tmp_path: Path, bundle: Path) -> None:
    path = _png(tmp_path / "other.png", parameters="a house\nSteps: 20, \x1b[31mSeed: 1")
    shown = cli("inspect", path)
    assert shown.status == 0
    assert "Steps: 20, \\x1b[31mSeed: 1" in shown.out
    assert_refused(run(cli, bundle, like=path), "the parameters of another program")


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"later": 1, "generator": 2}, "was made with generator, later, which this command cannot give"),
        ({"image": "/etc/passwd"}, "was made with image, which this command cannot give"),
    ],
)
def test_what_a_run_cannot_follow_is_told(
    cli: Cli,
    tmp_path: Path,
    bundle: Path,
    changed: dict[str, Any],
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A path among the arguments, which is no file of the image, is not read."""
    with Image.open(tmp_path / "first-1.png") as image:
        text = json.loads(image.info["controlnext"])
        text["arguments"] |= changed
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text("controlnext", json.dumps(text))
        image.save(tmp_path / "edited.png", pnginfo=chunks)
    done = run(cli, bundle, like=tmp_path / "edited.png", output=tmp_path / "new.png")
    assert done.status == 0
    assert words in caplog.text


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("output", ["new.png", "edited.png"])
def test_another_backend_is_told(
    output: str, cli: Cli, tmp_path: Path, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the new image takes the place of the old one."""
    with Image.open(tmp_path / "first-1.png") as image:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(
            "controlnext", image.info["controlnext"].replace("onnxruntime on cpu", "other on cpu")
        )
        image.save(tmp_path / "edited.png", pnginfo=chunks)
    done = run(cli, bundle, like=tmp_path / "edited.png", output=tmp_path / output)
    assert done.status == 0
    assert "edited.png was made by other on cpu, and now by onnxruntime on cpu" in caplog.text
