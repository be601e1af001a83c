"""``python -m tests.fuzz``: fuzz for some minutes, or a number of cases; keep what is found."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# each case is a fork of this process: it must not have threads
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
    os.environ[name] = "false" if name == "TOKENIZERS_PARALLELISM" else "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

if __name__ == "__main__":
    from fuzz.command import main

    main()
