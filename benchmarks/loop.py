"""evalkit's loop against a bare loop over the same model that does the least possible work; the answers must be equal.

    python -m benchmarks loop

The random BLIP-2 of `_model` answers questions about drawn 224 x 224 JPEGs, greedy, 16 new tokens, one thread: five an
image (as in VQAv2), where the image is encoded once by both, and one an image. The bare loop knows no log, no plan, no
threads: it opens, encodes and asks in order, in the same batches. CPU seconds of the process, in pairs that take turns;
the first pair warms up.
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from benchmarks._model import small_blip2
from evalkit import assemble, config
from evalkit.log import Writer, read_log
from evalkit.progress import Progress
from evalkit.work import Assignment, Worker

_PAIRS = 3
_WORDS = ("what", "colour", "is", "how", "many", "cat", "red", "photo", "the", "of")


def main() -> None:
    """Measure both cases."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small_blip2(root / "model")
        for questions in (5, 1):
            _case(root, questions=questions, images=64 if questions == 1 else 32)


def _case(root: Path, *, questions: int, images: int) -> None:
    data = root / f"data-{questions}"
    _dataset(data, images=images, questions=questions)
    ready, worker = _evalkit(root, data)
    model = Blip2ForConditionalGeneration.from_pretrained(root / "model", dtype=torch.float32).eval()
    processor = Blip2Processor.from_pretrained(root / "model")
    ratios = []
    for pair in range(_PAIRS + 1):
        ours, answers = _timed(lambda pair=pair: _ask_evalkit(ready, worker, root / f"log-{questions}-{pair}"))
        bare, expected = _timed(lambda: _ask_bare(ready, data, model, processor))
        assert answers == expected, "the two loops disagree"
        if pair:
            ratios.append(bare / ours)
            print(f"  {images} images x {questions}: evalkit {ours:.2f} s, bare {bare:.2f} s, ratio {bare / ours:.3f}")
    num = len(ready.dataset.samples)
    print(
        f"{num} questions, {questions} an image, {len(set(answers.values()))} distinct answers, all equal: evalkit "
        f"answers {statistics.median(ratios):.3f} x as many a CPU second as the bare loop (median of {_PAIRS} pairs)"
    )


def _evalkit(root: Path, data: Path) -> tuple[Assignment, Worker]:
    words = [
        *("model=blip2-opt", f"model.checkpoint={root / 'model'}", "task=vqav2", "data=files", "question_filter=none"),
        *(f"data.questions={data / 'questions.json'}", f"data.annotations={data / 'annotations.json'}"),
        *(f"data.images={data}", "decoding.max_new_tokens=16", "decoding.min_new_tokens=0", "decoding.num_beams=1"),
        "decoding.length_penalty=1.0",
    ]
    run = config.compose(config.parse(words))
    model = assemble.build_model(run.model)
    ready = assemble.assignment("vqav2", run, model, root)
    worker = Worker(model)
    worker.prepare(ready)
    return ready, worker


def _ask_evalkit(ready: Assignment, worker: Worker, folder: Path) -> dict[str, str | None]:
    worker.stop = threading.Event()
    progress = Progress("loop", samples=len(ready.dataset.samples), images=len(ready.units))
    with Writer(folder) as writer:
        worker.do(ready, "questions", range(len(ready.units)), writer, progress)
    return {sample_id: prediction.output for sample_id, prediction in read_log(folder).predictions.items()}


@torch.inference_mode()
def _ask_bare(
    ready: Assignment, data: Path, model: Blip2ForConditionalGeneration, processor: Blip2Processor
) -> dict[str, str | None]:
    """Answer in evalkit's batches with transformers alone."""
    answers: dict[str, str | None] = {}
    language, words = model.language_model, processor.tokenizer
    words.padding_side = "left"
    for unit in ready.units:
        pictures = [Image.open(data / f"{int(image_id):012d}.jpg").convert("RGB") for image_id in unit.image_ids]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        features = model.get_image_features(pixels, return_dict=True).pooler_output
        rows = {image_id: row for row, image_id in enumerate(unit.image_ids)}
        for batch in unit.batches:
            images = features[[rows[sample.image_ids[0]] for sample in batch]]
            mark = "<image>" * images.shape[1]
            text = words([mark + ready.prompts[s.id] for s in batch], padding=True, return_tensors="pt")
            ids, mask = text["input_ids"], text["attention_mask"]
            embeds = language.get_input_embeddings()(ids)
            embeds = embeds.masked_scatter((ids == model.config.image_token_id)[:, :, None], images)
            new = language.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=16, do_sample=False)
            texts = words.batch_decode(new, skip_special_tokens=True)
            answers |= dict(zip((sample.id for sample in batch), texts, strict=True))
    return answers


def _timed(function: Callable[[], dict[str, str | None]]) -> tuple[float, dict[str, str | None]]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def _dataset(folder: Path, *, images: int, questions: int) -> None:
    """Write drawn JPEGs and the official pair of VQA files."""
    folder.mkdir()
    draw = random.Random(0)
    asked, answered = [], []
    for image_id in range(1, images + 1):
        picture = Image.new("RGB", (224, 224), tuple(draw.randrange(256) for _ in range(3)))
        for _ in range(6):
            corner = [draw.randrange(160), draw.randrange(160)]
            box = [*corner, corner[0] + draw.randrange(10, 64), corner[1] + draw.randrange(10, 64)]
            ImageDraw.Draw(picture).ellipse(box, fill=tuple(draw.randrange(256) for _ in range(3)))
        picture.save(folder / f"{image_id:012d}.jpg", quality=90)
        for number in range(questions):
            question = " ".join(draw.choices(_WORDS, k=draw.randrange(4, 10)))
            asked.append({"image_id": image_id, "question_id": image_id * 1000 + number, "question": question})
            answers = [{"answer": "yes", "answer_id": person} for person in range(1, 11)]
            answered.append({"image_id": image_id, "question_id": image_id * 1000 + number, "answers": answers})
    (folder / "questions.json").write_text(json.dumps({"questions": asked}))
    (folder / "annotations.json").write_text(json.dumps({"annotations": answered}))


if __name__ == "__main__":
    main()
