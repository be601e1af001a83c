"""The folder in which the blocks of the pages run: what they name, as small as it can be."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from controlnext.runtime.media.video_files import write_clip
from support.doc_blocks import ROOT
from support.fake_bundle import write_fake_bundle
from support.fake_clips import write_fake_clips
from support.fake_loras import write_fake_lora
from support.stand_in_models import write_detector, write_estimator, write_map_model

SIDE = 64
IMAGES = ("outline", "edges", "depth", "photo", "person", "mask", "style")
CLIPS = ("dance", "poses", "pose")
BUNDLES = {
    "sdxl": "sdxl sdxl-fp16 sdxl-lcm sdxl-depth sdxl-anime-canny shapes-fp16 shapes-fp32 shapes-int8"
    " shapes-lcm lightning hyper hyper-unified turbo",
    "sd15": "sd15 sd15-fp32 sd15-fp16 sd15-int8 sd15-lcm",
    "two": "two",
    "svd": "svd svd-fp32",
}
"""Names of bundles in ``build/`` that pages use, by what they are links to."""


def write_bundles(folder: Path) -> None:
    """Write the fake bundles that :func:`write_page_folder` links to."""
    for family in ("sdxl", "sd15"):
        write_fake_bundle(folder / family, family, previews=True, shallow=True, encoder=True, lora_rank=32)
    write_fake_bundle(folder / "two", "sdxl", controls=2)
    write_fake_clips(folder / "svd")


def write_page_folder(folder: Path, bundles: Path) -> None:
    """Write images, clips and models to ``folder``, with links to ``bundles`` and to the scripts."""
    (folder / "build").mkdir(parents=True)
    for source, names in BUNDLES.items():
        for name in names.split():
            (folder / "build" / name).symlink_to(bundles / source)
    for name in ("examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for seed, name in enumerate(IMAGES):
        squares = np.random.RandomState(seed).random_sample((SIDE // 8, SIDE // 8, 3)) > 0.5
        image = Image.fromarray((squares * 255).astype(np.uint8).repeat(8, 0).repeat(8, 1))
        for suffix in ("png", "jpg"):
            image.convert("L" if name == "mask" else "RGB").save(folder / f"{name}.{suffix}")
    for name in CLIPS:
        write_clip(folder / f"{name}.mp4", iter([Image.open(folder / "edges.png")] * 3), Fraction(6))
    for kind in ("cat", "dog", "birds/robin"):
        path = folder / "edges" / f"{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "edges.png").save(path)
    (folder / "styles").mkdir()
    for seed, name in enumerate(("ink", "lcm")):
        write_fake_lora(folder / "styles" / f"{name}.safetensors", seed, rank=16)
    (folder / "models").mkdir()
    write_map_model(folder / "hed.onnx")
    write_detector(folder / "models" / "yolox_l.onnx", {})
    write_estimator(folder / "models" / "dw-ll_ucoco_384.onnx", np.zeros((133, 2)), np.zeros(133))
