"""Train the tiny BLIP-2 from scratch: `python -m evalkit.demo.train --out DIR`.

One thread, no download. Killed and started again with the same DIR, it continues.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that `--stages` names, in order."""
    parser = argparse.ArgumentParser(prog="python -m evalkit.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for training states and checkpoints")
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--language-steps", type=int, default=1700)
    args = parser.parse_args(arguments)
    import torch

    from evalkit.demo.language_stage import train_language
    from evalkit.demo.vision_stage import train_vision

    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    began = time.process_time(), time.time()

    def say(line: str) -> None:
        cpu, wall = time.process_time() - began[0], time.time() - began[1]
        print(f"[cpu {cpu / 60:5.1f} min, wall {wall / 60:5.1f} min] {line}", flush=True)

    train_vision(args.out, args.vision_steps, say)
    train_language(args.out, args.language_steps, say)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
