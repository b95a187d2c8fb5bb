"""Caption metrics at full scale beside the official code, in one run: same captions, same machine, stage by stage.

    python benchmarks/captions.py [--images 40504] [--no-meteor] [--tokens]

The captions are COCO 2014 val's, which come inside the pycocoevalcap package: of each image the first is the
hypothesis, the others are references. Every stage's result is compared with the official one, so a fast wrong answer
ends the benchmark. `--tokens` also compares the tokenizer with the official program on all 616,767 captions of
train and val.
Times are wall-clock seconds; for stages in this process CPU seconds too, which other work on the machine does not move.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evalkit.metrics import meteor, ngrams, ptb
from evalkit.metrics.java import find_java, scorer_file, stop_workers


@dataclass
class Row:
    """One line of the table."""

    stage: str
    ours: float
    theirs: float
    ours_cpu: float | None = None
    theirs_cpu: float | None = None
    agreement: str = ""


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def silent(work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return work()

    return run


def coco(split: str) -> dict[int, list[str]]:
    """Return the captions of COCO 2014 by image, in file order."""
    with zipfile.ZipFile(scorer_file("spice/spice-1.0.jar")) as jar:
        data = json.loads(jar.read(f"coco/annotations/captions_{split}2014.json"))
    captions: dict[int, list[str]] = {}
    for each in data["annotations"]:
        captions.setdefault(each["image_id"], []).append(each["caption"])
    return captions


def tokenizers(hypotheses: dict[int, str], references: dict[int, list[str]]) -> tuple[Row, Any, Any]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    said = list(hypotheses.values())
    written = [caption for group in references.values() for caption in group]

    def ours() -> tuple[list[str], list[str]]:
        return ptb.tokenize(said, context="file"), ptb.tokenize(written, context="file")

    def theirs() -> tuple[dict[int, list[str]], dict[int, list[str]]]:
        spoken = {key: [{"caption": caption}] for key, caption in hypotheses.items()}
        told = {key: [{"caption": caption} for caption in group] for key, group in references.items()}
        return PTBTokenizer().tokenize(spoken), PTBTokenizer().tokenize(told)

    (mine_said, mine_written), wall, cpu = timed(ours)
    (res, gts), their_wall, _ = timed(theirs)
    official = [group[0] for group in res.values()] + [caption for group in gts.values() for caption in group]
    pairs = list(zip([*mine_said, *mine_written], official, [*said, *written], strict=True))
    wrong = [caption for mine, other, caption in pairs if mine != other]
    if any(ptb.guarded(caption) for caption in wrong):
        sys.exit(f"the tokenizer is wrong inside its guard: {wrong[:3]}")
    guard = sum(map(ptb.guarded, said)) + sum(map(ptb.guarded, written))
    agreement = f"{len(pairs) - len(wrong):,} of {len(pairs):,} equal; {guard / len(pairs):.2%} in the guard"
    return Row("PTB tokenizer", wall, their_wall, cpu, None, agreement), gts, res


def ngram_rows(gts: dict[int, list[str]], res: dict[int, list[str]]) -> list[Row]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said, references = [group[0] for group in res.values()], list(gts.values())
    corpus, wall, cpu = timed(lambda: ngrams.Corpus.of(said, references))
    rows = [Row("numbering words", wall, 0.0, cpu, None, "shared by the next three")]
    stages: Sequence[tuple[str, Callable[[], Any], Any, float]] = (
        ("BLEU-1..4", lambda: ngrams.bleu(ngrams.bleu_statistics(corpus).sum(axis=0)), Bleu(4), 0.0),
        ("ROUGE-L", lambda: float(np.mean(ngrams.rouge_l(corpus))), Rouge(), 0.0),
        ("CIDEr-D", lambda: float(np.mean(ngrams.cider(corpus))), Cider(), 1e-12),
    )
    for stage, ours, official, tolerance in stages:
        mine, wall, cpu = timed(ours)
        (value, _), their_wall, their_cpu = timed(silent(lambda official=official: official.compute_score(gts, res)))
        away = float(np.max(np.abs(np.subtract(mine, value)) / np.abs(value)))
        if away > tolerance:
            sys.exit(f"{stage}: {mine} is not the official {value}")
        agreement = "equal in every bit" if away == 0 else f"{away:.1e} relative"
        rows.append(Row(stage, wall, their_wall, cpu, their_cpu, agreement))
    return rows


def meteor_rows(gts: dict[int, list[str]], res: dict[int, list[str]]) -> list[Row]:
    from pycocoevalcap.meteor.meteor import Meteor

    pairs = [(res[key][0], gts[key]) for key in gts]
    living = meteor.meteor_worker(find_java(None))
    rows_, start, _ = timed(lambda: meteor.statistics(living, pairs[:1]))
    rows_, wall, _ = timed(lambda: meteor.statistics(living, pairs))
    value = meteor.official_meteor(living, [sum(column) for column in zip(*rows_, strict=True)])
    stop_workers()
    official, their_start, _ = timed(lambda: starting(Meteor()))
    (theirs, _), their_wall, _ = timed(lambda: official.compute_score(gts, res))
    away = abs(value - theirs) / theirs
    if away > 1e-12:
        sys.exit(f"METEOR: {value} is not the official {theirs}")
    agreement = "equal in every bit" if away == 0 else f"{away:.1e} relative"
    return [
        Row("METEOR start", start, their_start, None, None, "JVM and paraphrase table, once a process"),
        Row("METEOR", wall, their_wall, None, None, agreement),
    ]


def starting(official: Any) -> Any:
    """Wait until the official METEOR has read its paraphrase table."""
    official.compute_score({0: ["a dog"]}, {0: ["a dog"]})
    return official


def all_tokens() -> None:
    """Compare the tokenizer with the official program on train and val, 616,767 captions in one file each."""
    for split in ("train", "val"):
        captions = coco(split)
        row, _, _ = tokenizers({0: "a"}, captions)
        print(f"COCO 2014 {split}: {row.agreement}; {row.ours:.1f} s, the official program {row.theirs:.1f} s")


def table(rows: Sequence[Row], num_images: int) -> str:
    def seconds(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    def ratio(ours: float | None, theirs: float | None) -> str:
        return f"{theirs / ours:.1f}x" if ours and theirs else ""

    lines = [
        f"{num_images:,} images; Python {platform.python_version()}, numpy {np.__version__}, "
        f"Java {find_java(None).version}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "",
        "| stage | evalkit s | pycocoevalcap s | ratio | evalkit CPU s | pycocoevalcap CPU s | CPU ratio | result |",
        "|---|---|---|---|---|---|---|---|",
    ]
    python = [row for row in rows if row.ours_cpu is not None and row.stage != "PTB tokenizer"]
    total = Row(
        "BLEU + ROUGE-L + CIDEr-D",
        sum(row.ours for row in python),
        sum(row.theirs for row in python),
        sum(row.ours_cpu or 0 for row in python),
        sum(row.theirs_cpu or 0 for row in python),
    )
    lines += [
        f"| {row.stage} | {seconds(row.ours)} | {seconds(row.theirs or None)} | {ratio(row.ours, row.theirs)} | "
        f"{seconds(row.ours_cpu)} | {seconds(row.theirs_cpu)} | {ratio(row.ours_cpu, row.theirs_cpu)} "
        f"| {row.agreement} |"
        for row in [*rows, total]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=40_504, help="how many of the 40,504")
    parser.add_argument("--no-meteor", action="store_true", help="leave METEOR out")
    parser.add_argument("--tokens", action="store_true", help="compare the tokenizer on all captions of train and val")
    chosen = parser.parse_args()
    captions = dict(list(coco("val").items())[: chosen.images])
    row, gts, res = tokenizers(
        {key: group[0] for key, group in captions.items()}, {key: group[1:] for key, group in captions.items()}
    )
    rows = [row, *ngram_rows(gts, res)]
    if not chosen.no_meteor:
        rows += meteor_rows(gts, res)
    print(table(rows, len(captions)))
    if chosen.tokens:
        all_tokens()


if __name__ == "__main__":
    main()
