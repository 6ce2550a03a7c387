"""``python -m examples.benchmarks.suite`` from a clone; its folder's path will do too."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from suite.command import main  # noqa: E402

if __name__ == "__main__":
    main()
