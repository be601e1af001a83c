"""Time and quality of the small model's images: bundles, plain and multiplying less, beside PyTorch.

python examples/shapes/speed.py build/shapes-fp32 build/shapes-int8 --cache-interval 3 --guidance-end 0.7

Measures images as `controlnext bench --measure image` does, and scores those of the held-out drawings.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import draw
import numpy as np
from demo import GUIDANCE, STEPS
from evaluate import calls, scores

from controlnext.bench.quality import Exam
from controlnext.bench.results import markdown
from controlnext.bench.session import measure
from controlnext.bench.settings import Settings


def score(drawings: list[draw.Drawing], images: np.ndarray) -> Mapping[str, float]:
    """Return the scores of the drawings' images (N, H, W, 3) by name."""
    covered, colours = scores(images, drawings)
    return {"IoU": covered, "colours": colours}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=64, help="number of held-out drawings")
    parser.add_argument("--only", nargs="+", default=["engine*", "torch eager float32*"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--cache-interval", type=int)
    parser.add_argument("--guidance-end", type=float)
    parser.add_argument("--tiny-decoder", action="store_true")
    parser.add_argument("--few-steps", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = vars(parser.parse_args(arguments))
    bundles, drawings = given.pop("bundles"), draw.held_out(given.pop("count"))
    only, side = given.pop("only"), draw.SIZE
    settings = Settings(["image"], only, side, side, runs=1, device="auto", guidance=GUIDANCE, **given)
    with tempfile.TemporaryDirectory() as made:
        exam = Exam(list(calls(drawings)), partial(score, drawings))
        print(markdown(measure(bundles, settings, Path(made), lambda _turn, _share: None, exam)))


if __name__ == "__main__":
    main()
