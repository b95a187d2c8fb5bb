"""Run benchmarks by name; without a name, those that take a few minutes.

python -m benchmarks                 start-up and the loop
python -m benchmarks captions        one of the long ones, by name
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

_SHORT = ("startup", "loop")


def main() -> int:
    """Run what is named."""
    known = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    names = sys.argv[1:] or list(_SHORT)
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names:
        print(f"\n== {name}", flush=True)
        sys.argv = [name]
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
