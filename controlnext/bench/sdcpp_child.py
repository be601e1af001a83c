"""The process that runs stable-diffusion.cpp, in an environment of its own, with nothing of this package.

``python sdcpp_child.py OPTIONS`` loads the model with OPTIONS, JSON of the arguments of its class; then every
line of stdin is JSON of the arguments of an image. Each answer is a line of JSON with the ``seconds``.
"""

import json
import os
import sys
import time


def main() -> None:
    """Answer requests until stdin ends."""
    # the library prints on stdout
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    started = time.perf_counter()
    from stable_diffusion_cpp import StableDiffusion

    model = StableDiffusion(**json.loads(sys.argv[1]))
    while True:
        answers.write(json.dumps({"seconds": time.perf_counter() - started}) + "\n")
        line = sys.stdin.readline()
        if not line:
            break
        started = time.perf_counter()
        model.generate_image(**json.loads(line))


if __name__ == "__main__":
    main()
