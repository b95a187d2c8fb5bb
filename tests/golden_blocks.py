"""What evalkit says about each block of a golden file, compared with what the official code said.

`FILES[name].blocks[block]` takes the parsed file and yields one line for each expectation that does not hold. Nothing
here knows how many cases a file has or what is in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from evalkit.extract import box_999
from evalkit.metrics.gqa import gqa_scores
from evalkit.metrics.grounding import iou
from evalkit.metrics.mme import mme_label, mme_scores, mme_task
from evalkit.metrics.retrieval import Pair, ranked_candidates, recall_at_k
from evalkit.metrics.text import anls, relaxed_accuracy
from evalkit.metrics.vqa import normalise, vqa_accuracy, vqa_metric
from evalkit.types import Answered, MetricSettings, Sample, Scores, Text
from tests.golden_captions import CAPTION_FILES
from tests.golden_compare import ROUNDED, SINGLE, Check, Doc, GoldenFile, count, differences

# VQA


def _vqa_case(case: Doc) -> Doc:
    accuracy = vqa_accuracy(case["prediction"], case["answers"], variant="official")
    cleaned = normalise(case["prediction"], case["answers"], variant="official")
    return {
        "accuracy": accuracy,
        "evalQA": 100 * accuracy,
        # A probe that any cleaning would change.
        "normalised": normalise("The A!", case["answers"], variant="official").prediction != "The A!",
        "prediction_normalised": cleaned.prediction,
        "answers_normalised": list(cleaned.answers),
    }


def _vqa_cases(block: str) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        for case in doc[block]:
            where, actual = f"question {case['question_id']}", _vqa_case(case)
            percent = {key: value for key, value in case["expected"].items() if key == "evalQA"}
            yield from differences(where, actual, percent, ROUNDED)
            yield from differences(where, actual, case["expected"] | percent | {"evalQA": actual["evalQA"]})
            legacy = 100 * vqa_accuracy(case["prediction"], case["answers"], variant="legacy")
            yield from differences(f"{where} legacy", {"evalQA": legacy}, case.get("legacy_lavis_qwen", {}), ROUNDED)

    return check


def _vqa_aggregate(block: str, variant: str) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        answered = [
            Answered(
                sample=Sample(
                    id=str(case["question_id"]), image_ids=("1",), reference={"answers": case["answers"]}, tags=case
                ),
                answer=case["prediction"],
            )
            for case in doc["cases"]
        ]
        scores = vqa_metric(variant).compute(answered, MetricSettings())
        values = scores.per_sample["vqa_accuracy"]
        actual: Doc = {"overall": 100 * scores.aggregate["vqa_accuracy"]}
        for name, tag in (("perAnswerType", "answer_type"), ("perQuestionType", "question_type")):
            groups: dict[str, list[float]] = {}
            for each, value in zip(answered, values, strict=True):
                assert value is not None
                groups.setdefault(each.sample.tags[tag], []).append(value)
            actual[name] = {key: 100 * _mean(group) for key, group in groups.items()}
        yield from differences(block, actual, doc[block], ROUNDED)

    return check


def _plain_vqa_cases(variant: str) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        for case in doc["cases"]:
            cleaned = normalise(case["prediction"], case["answers"], variant=variant)
            actual = {
                "accuracy": vqa_accuracy(case["prediction"], case["answers"], variant=variant),
                "prediction_processed": cleaned.prediction,
                "answers_processed": list(cleaned.answers),
                "unique_answer_scores": {
                    text: vqa_accuracy(raw, case["answers"], variant=variant)
                    for raw, text in zip(case["answers"], cleaned.answers, strict=True)
                },
            }
            yield from differences(f"case {case['id']}", actual, case["expected"])

    return check


def _plain_vqa_aggregate(variant: str) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        answered = [_answered(case["id"], case["prediction"], {"answers": case["answers"]}) for case in doc["cases"]]
        scores = vqa_metric(variant).compute(answered, MetricSettings(names=("vqa_accuracy",)))
        yield from differences("aggregate", {"accuracy": scores.aggregate["vqa_accuracy"]}, doc["aggregate"])

    return check


# GQA

_GQA_TABLES = {
    "accuracyPerStructuralType": "structural",
    "accuracyPerSemanticType": "semantic",
    "accuracyPerSteps": "steps",
    "accuracyPerLength": "length",
}
_GQA_PRINTED_TABLES = {
    "structural": "Accuracy / structural type",
    "semantic": "Accuracy / semantic type",
    "steps": "Accuracy / steps number",
    "length": "Accuracy / words number",
}


def _gqa(doc: Doc) -> tuple[list[Answered], Scores]:
    answered = []
    for question_id, question in doc["questions"].items():
        reference = {key: question[key] for key in ("answer", "types", "groups", "semantic", "entailed", "annotations")}
        reference |= {"is_balanced": question["isBalanced"], "choices": doc["choices"].get(question_id)}
        sample = Sample(
            id=question_id,
            image_ids=(question["imageId"],),
            fields={"question": question["question"]},
            reference=reference,
        )
        answered.append(Answered(sample=sample, answer=doc["predictions"][question_id]))
    settings = MetricSettings()
    return answered, gqa_scores(answered, settings, attentions=doc["attentions"], scene_graphs=doc["scene_graphs"])


def _gqa_scores(doc: Doc) -> Iterator[str]:
    _, scores = _gqa(doc)
    actual: Doc = {name: value if name == "distribution" else 100 * value for name, value in scores.aggregate.items()}
    for name, table in _GQA_TABLES.items():
        actual[name] = {key: [100 * row["accuracy"], row["n"]] for key, row in scores.details[table].items()}
    yield from differences("scores", actual, doc["expected"]["scores"])


def _gqa_per_question(doc: Doc) -> Iterator[str]:
    answered, scores = _gqa(doc)
    names = {
        "correct": "accuracy", "valid": "validity", "plausible": "plausibility", "grounding": "grounding",
        "consistency": "consistency",
    }  # fmt: skip
    places = {each.sample.id: place for place, each in enumerate(answered)}
    for question_id, expected in doc["expected"]["per_question"].items():
        # Whether a question is right is 0 or 1 in one file and a truth value in another.
        numbers = {key: float(value) if isinstance(value, bool) else value for key, value in expected.items()}
        actual = {key: scores.per_sample[name][places[question_id]] for key, name in names.items()}
        yield from differences(f"question {question_id}", actual, numbers)


def _gqa_printed(doc: Doc) -> Iterator[str]:
    """The script's own output, written from our numbers."""
    _, scores = _gqa(doc)
    lines = []
    for name in ("binary", "open", "accuracy", "consistency", "validity", "plausibility", "grounding", "distribution"):
        value = scores.aggregate[name]
        number = f"{value:.2f} (lower is better)" if name == "distribution" else f"{100 * value:.2f}%"
        lines.append(f"{name.capitalize()}: {number}")
    for table, title in _GQA_PRINTED_TABLES.items():
        rows = sorted(scores.details[table].items(), key=lambda row: (row[0].isdigit() and int(row[0]), row[0]))
        lines += ["", f"{title}:"]
        lines += [f"  {key}: {100 * row['accuracy']:.2f}% ({row['n']} questions)" for key, row in rows]
    yield from differences("printed", lines, doc["expected"]["printed"].strip("\n").split("\n"))


# Boxes


def _box(values: Iterable[Any]) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _qwen_box(case: Doc) -> tuple[float, float, float, float]:
    height, width = case["hw"]
    box = box_999(case["answer"], Sample(id="1", image_ids=("1",), fields={"width": width, "height": height}))
    return box or (0.0, 0.0, 0.0, 0.0)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def _qwen_cases(doc: Doc) -> Iterator[str]:
    for case in doc["qwen_cases"]:
        box = _qwen_box(case)
        overlap = iou(box, case["gt_bbox_xyxy"], convention="continuous")
        actual = {
            "iou": _defined(overlap),
            "iou_is_nan": math.isnan(overlap),
            "correct": int(overlap >= 0.5),
            "pred_bbox_xyxy": [str(v) if math.isinf(v) else _defined(v) for v in box],
        }
        # Corners are as large as the image: single precision is relative there.
        expected = dict(case["expected"])
        corners = expected.pop("pred_bbox_xyxy", [])
        yield from differences(f"qwen {case['id']}", actual, expected, SINGLE)
        yield from differences(f"qwen {case['id']} box", actual["pred_bbox_xyxy"], corners or box, SINGLE, True)


def _refer_iou(case: Doc) -> float:
    a, b = ((x, y, x + w, y + h) for x, y, w, h in (case["box1_xywh"], case["box2_xywh"]))
    return iou(a, b, convention="refer")


def _refer_cases(doc: Doc) -> Iterator[str]:
    for case in doc["refer_cases"]:
        overlap = _refer_iou(case)
        undefined = math.isnan(overlap)
        actual = {
            "iou": _defined(overlap),
            "error": "ZeroDivisionError" if undefined else None,
            "correct": None if undefined else int(overlap >= 0.5),
        }
        yield from differences(f"refer {case['id']}", actual, case["expected"], SINGLE)


def _box_aggregate(doc: Doc) -> Iterator[str]:
    qwen = [iou(_qwen_box(case), case["gt_bbox_xyxy"], convention="continuous") >= 0.5 for case in doc["qwen_cases"]]
    refer = [overlap >= 0.5 for case in doc["refer_cases"] if not math.isnan(overlap := _refer_iou(case))]
    actual = {"qwen_precision_at_1": _mean(qwen), "refer_accuracy_over_defined": _mean(refer)}
    yield from differences("aggregate", actual, doc["aggregate"])


# Retrieval


def _top(scores: Sequence[float], k: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


def _pairs(case: Doc, k: int | None) -> dict[str, list[Pair]]:
    """Return all pairs; or the union of both top-k lists, as a run keeps it."""
    itc, itm = case["itc_sims"], case.get("itm_scores")
    images, texts = range(case["n_images"]), range(case["n_texts"])
    kept = {(i, j) for i in images for j in (texts if k is None else _top(itc[i], k))}
    kept |= {(i, j) for j in texts for i in (images if k is None else _top([row[j] for row in itc], k))}
    pairs: dict[str, list[Pair]] = {str(i): [] for i in images}
    for i, j in sorted(kept):
        pairs[str(i)].append((str(j), itc[i][j], None if itm is None else itm[i][j]))
    return pairs


def _texts(case: Doc) -> list[Text]:
    images_of: dict[int, set[int]] = {j: {image} for j, image in enumerate(case["txt2img"])}
    for image, texts in enumerate(case["img2txt"]):
        for j in texts:
            images_of[j].add(image)
    return [Text(id=str(j), text="", image_ids=tuple(map(str, sorted(images_of[j])))) for j in range(case["n_texts"])]


def _recalls(pairs: Mapping[str, Sequence[Pair]], texts: Sequence[Text], k: int | None, fusion: str) -> Doc:
    recall = recall_at_k(pairs, texts, k=k or 0, fusion=fusion)
    text_mean, image_mean = (100 * _mean(list(shares.values())) for shares in (recall.i2t, recall.t2i))
    return {
        **{f"txt_r{cutoff}": 100 * share for cutoff, share in recall.i2t.items()},
        **{f"img_r{cutoff}": 100 * share for cutoff, share in recall.t2i.items()},
        "txt_r_mean": text_mean,
        "img_r_mean": image_mean,
        "r_mean": 100 * recall.mean,
        "agg_metrics": text_mean,
        "rank_i2t": [recall.i2t_ranks[image] for image in pairs],
        "rank_t2i": [recall.t2i_ranks[text.id] for text in texts],
    }


def _retrieval_sets(doc: Doc) -> Iterator[str]:
    for case in doc["sets"]:
        texts, k = _texts(case), case["k"]
        fusion = "itc" if case.get("itm_scores") is None else "itm+itc"
        pairs = _pairs(case, k)
        actual = _recalls(pairs, texts, k, fusion)
        actual["without_rerank"] = _recalls(_pairs(case, None), texts, None, "itc")
        by_image = ranked_candidates(pairs, texts, direction="i2t", k=k or 0, fusion=fusion)
        by_text = ranked_candidates(pairs, texts, direction="t2i", k=k or 0, fusion=fusion)
        lengths = {len(candidates) for candidates in by_image.values()}
        actual["n_candidates_scored_per_image"] = lengths.pop() if len(lengths) == 1 else None
        for key, row, candidates in (
            ("score_i2t_first_row", by_image["0"], texts),
            ("score_t2i_first_row", by_text["0"], pairs),
        ):
            scores = dict(row)
            actual[key] = [scores.get(str(i), -100.0) for i in range(len(candidates))]
        expected = dict(case["expected"])
        rows = {key: expected.pop(key) for key in list(expected) if key.endswith("_first_row")}
        yield from differences(case["name"], actual, expected)
        yield from differences(case["name"], actual, rows, 1e-6)


# Text answers and MME


def _anls_cases(doc: Doc) -> Iterator[str]:
    for case in doc["cases"]:
        yield from differences(
            f"case {case['id']}", {"score": anls(case["prediction"], case["answers"])}, case["expected"]
        )


def _anls_aggregate(doc: Doc) -> Iterator[str]:
    score = _mean([anls(case["prediction"], case["answers"]) for case in doc["cases"]])
    yield from differences("aggregate", {"score": score}, doc["aggregate"])


def _relaxed(prediction: str, targets: list[str], variant: str) -> bool:
    return bool(relaxed_accuracy(prediction, targets, variant=variant))


def _relaxed_cases(doc: Doc) -> Iterator[str]:
    for case in doc["cases"]:
        for key, variant in (("expected", "pix2struct"), ("qwen_vl", "qwen_vl")):
            correct = _relaxed(case["prediction"], [case["target"]], variant)
            yield from differences(f"case {case['id']} {variant}", {"correct": correct}, case.get(key, {}))


def _relaxed_multi(doc: Doc) -> Iterator[str]:
    for i, case in enumerate(doc["multi_target_cases"]):
        correct = _relaxed(case["prediction"], case["targets"], "pix2struct")
        yield from differences(f"multi-target case {i}", {"correct": correct}, case["expected"])


def _relaxed_aggregate(doc: Doc) -> Iterator[str]:
    accuracy = 100 * _mean([_relaxed(case["prediction"], [case["target"]], "pix2struct") for case in doc["cases"]])
    yield from differences("aggregate", {"accuracy": accuracy}, doc["aggregate"])


def _relaxed_aggregate_qwen(doc: Doc) -> Iterator[str]:
    accuracy = _mean([_relaxed(case["prediction"], [case["target"]], "qwen_vl") for case in doc["cases"]])
    yield from differences("aggregate", {"relaxed_accuracy": accuracy}, doc["aggregate_qwen_vl"])


def _mme_rows(doc: Doc) -> Iterator[str]:
    for name, rows in doc["tasks"].items():
        for i, row in enumerate(rows):
            yield from differences(f"{name} {i}", mme_label(row["prediction"]), row["expected_label"])


def _mme_tasks(doc: Doc) -> Iterator[str]:
    fields = ("TP", "FN", "TN", "FP", "precision", "recall", "other_num", "acc", "acc_plus", "score")
    for name, rows in doc["tasks"].items():
        answers = [(row["answer"], row["prediction"]) for row in rows]
        task = mme_task([answers[i : i + 2] for i in range(0, len(answers), 2)])
        actual = {key: getattr(task, key) for key in fields}
        yield from differences(name, actual, doc["expected"]["per_task"][name])


def _mme_total(total: str) -> Check:
    def check(doc: Doc) -> Iterator[str]:
        answered = [
            Answered(
                sample=Sample(
                    id=f"{name} {i}",
                    image_ids=(f"{name} {i // 2}",),
                    reference={"task": name, "answer": row["answer"]},
                ),
                answer=row["prediction"],
            )
            for name, rows in doc["tasks"].items()
            for i, row in enumerate(rows)
        ]
        points = mme_scores(answered, MetricSettings()).aggregate[total]
        yield from differences(total, points, doc["expected"][f"{total}_total"])

    return check


def _mme_parse(doc: Doc) -> Iterator[str]:
    for case in doc["parse_cases"]:
        yield from differences(repr(case["prediction"]), mme_label(case["prediction"]), case["expected_label"])


# Shared


def _answered(sample_id: Any, answer: Any, reference: Any) -> Answered:
    return Answered(sample=Sample(id=str(sample_id), image_ids=(str(sample_id),), reference=reference), answer=answer)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


_NUM_CASES = count("n", lambda doc: len(doc["cases"]))

FILES: Mapping[str, GoldenFile] = {
    "vqa_accuracy": GoldenFile(
        blocks={
            "n": _NUM_CASES,
            "cases": _vqa_cases("cases"),
            "version_sensitive": _vqa_cases("version_sensitive"),
            "aggregate": _vqa_aggregate("aggregate", "official"),
            "aggregate_legacy_lavis_qwen": _vqa_aggregate("aggregate_legacy_lavis_qwen", "legacy"),
        },
    ),
    "textvqa_accuracy": GoldenFile(
        blocks={"n": _NUM_CASES, "cases": _plain_vqa_cases("m4c"), "aggregate": _plain_vqa_aggregate("m4c")}
    ),
    "vizwiz_accuracy": GoldenFile(
        blocks={"n": _NUM_CASES, "cases": _plain_vqa_cases("vizwiz"), "aggregate": _plain_vqa_aggregate("vizwiz")}
    ),
    "gqa": GoldenFile(
        inputs=frozenset({"questions", "choices", "scene_graphs", "attentions", "predictions"}),
        blocks={
            "n": count("n", lambda doc: len(doc["questions"])),
            "n_balanced": count("n_balanced", lambda doc: sum(q["isBalanced"] for q in doc["questions"].values())),
            "expected.scores": _gqa_scores,
            "expected.per_question": _gqa_per_question,
            "expected.printed": _gqa_printed,
        },
    ),
    "refcoco_iou": GoldenFile(
        blocks={
            "n": count("n", lambda doc: len(doc["qwen_cases"]) + len(doc["refer_cases"])),
            "qwen_cases": _qwen_cases,
            "refer_cases": _refer_cases,
            "aggregate": _box_aggregate,
        }
    ),
    "retrieval": GoldenFile(blocks={"sets": _retrieval_sets}),
    **CAPTION_FILES,
    "anls": GoldenFile(blocks={"n": _NUM_CASES, "cases": _anls_cases, "aggregate": _anls_aggregate}),
    "relaxed_accuracy": GoldenFile(
        blocks={
            "n": _NUM_CASES,
            "cases": _relaxed_cases,
            "multi_target_cases": _relaxed_multi,
            "aggregate": _relaxed_aggregate,
            "aggregate_qwen_vl": _relaxed_aggregate_qwen,
        }
    ),
    "mme": GoldenFile(
        inputs=frozenset({"eval_types"}),
        blocks={
            "tasks": _mme_rows,
            "expected.per_task": _mme_tasks,
            "expected.perception_total": _mme_total("perception"),
            "expected.cognition_total": _mme_total("cognition"),
            "parse_cases": _mme_parse,
        },
    ),
}
