"""Train the tiny BLIP-2 from scratch and write its two checkpoints.

    python -m evalkit.demo.train --out DIR

One thread, no download, three quarters of an hour of CPU time; README.md beside this file says more. Killed and
started again with the same DIR, it continues. The stages:

- vision: the tower learns what each patch shows (`vision_stage.py`), 10 CPU minutes
- language: the whole model learns to answer, caption and point (`language_stage.py`), 24 CPU minutes
- retrieval: the Q-Former of the language stage learns to match texts and images (`retrieval_stage.py`), 8 CPU minutes
- ship: DIR/blip2-tiny and DIR/blip2-tiny-early, each with generate/ and retrieve/
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

STAGES = ("vision", "language", "retrieval", "ship")


def main(arguments: list[str] | None = None) -> int:
    """Run the stages that `--stages` names, in order."""
    parser = argparse.ArgumentParser(
        prog="python -m evalkit.demo.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for training states and checkpoints")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--language-steps", type=int, default=1250)
    parser.add_argument("--retrieval-steps", type=int, default=650)
    parser.add_argument("--retrieval-from", type=int, default=1250, help="language step that retrieval starts from")
    parser.add_argument("--ship-retrieval", type=int, default=500, help="retrieval step of the full checkpoint")
    parser.add_argument("--early-language", type=int, default=400, help="language step of the early checkpoint")
    parser.add_argument("--early-retrieval", type=int, default=100, help="retrieval step of the early checkpoint")
    args = parser.parse_args(arguments)
    import torch

    from evalkit.demo.language_stage import train_language
    from evalkit.demo.retrieval_stage import train_retrieval
    from evalkit.demo.ship import ship
    from evalkit.demo.vision_stage import train_vision

    torch.set_num_threads(1)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    began = time.process_time(), time.time()

    def say(line: str) -> None:
        cpu, wall = time.process_time() - began[0], time.time() - began[1]
        print(f"[cpu {cpu / 60:5.1f} min, wall {wall / 60:5.1f} min] {line}", flush=True)

    if "vision" in args.stages:
        train_vision(out, args.vision_steps, say)
    if "language" in args.stages:
        train_language(out, args.language_steps, say)
    if "retrieval" in args.stages:
        train_retrieval(out, f"language-{args.retrieval_from:05d}", args.retrieval_steps, say)
    if "ship" in args.stages:
        for name, language, retrieval in (
            ("blip2-tiny", args.language_steps, args.ship_retrieval),
            ("blip2-tiny-early", args.early_language, args.early_retrieval),
        ):
            ship(out / f"language-{language:05d}.pt", out / name / "generate", retrieval=False)
            ship(out / f"retrieval-{retrieval:05d}.pt", out / name / "retrieve", retrieval=True)
            say(f"wrote {name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
