"""python -m pytest tests/test_results.py: files of others are read or refused, files for servers are whole."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evalkit.data import load_dataset
from evalkit.errors import IncompleteError, ResultsError
from evalkit.extract import extract
from evalkit.registry import apply, resolve_task
from evalkit.results import read_predictions, write_submission
from evalkit.score import score
from evalkit.types import Dataset, MetricSettings, Prediction, Task
from tests.official import write_all, write_json
from tests.support import shared

ANSWERS = {"139000": "talking", "139001": "2", "285000": "yes", "632000": "white"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("official"))


def load(name: str, root: Path) -> tuple[Task, Dataset]:
    task = resolve_task(name)
    return task, load_dataset(task, kind="files", root=root, demo=True, images_needed=False)


def records(**changes: Any) -> list[dict[str, Any]]:
    return [{"question_id": int(key), "answer": answer, **changes} for key, answer in ANSWERS.items()]


def read(tmp_path: Path, root: Path, value: Any, name: str = "vqav2", **kwargs: Any) -> Mapping[str, Prediction]:
    task, dataset = load(name, root)
    return read_predictions(write_json(tmp_path / "results.json", value), task, dataset, **kwargs)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_the_vqa_format_is_read_whatever_its_order_and_id_type(tmp_path: Path, root: Path) -> None:
    found = read(tmp_path, root, list(reversed(records())))
    assert {key: each.output for key, each in found.items()} == ANSWERS
    assert list(found) == list(ANSWERS)
    as_text = [{**record, "question_id": str(record["question_id"])} for record in records()]
    assert read(tmp_path, root, as_text) == found


def test_json_lines_gzip_and_a_byte_order_mark_are_read(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2", root)
    expected = read(tmp_path, root, records())
    lines = "\n".join(json.dumps({**record, "answer": record["answer"]}) for record in records()) + "\n\n"
    for data in (lines.encode(), b"\xef\xbb\xbf" + lines.encode(), gzip.compress(lines.encode())):
        path = tmp_path / "lines"
        path.write_bytes(data)
        assert read_predictions(path, task, dataset) == expected


def test_an_answer_with_a_line_separator_is_one_line(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2", root)
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records(answer="a\u2028b\x85c")))
    assert read_predictions(path, task, dataset)["139000"].output == "a\u2028b\x85c"


def test_relatives_of_the_official_keys_are_read(tmp_path: Path, root: Path) -> None:
    """LLaVA's answer lines, and our own predictions."""
    for id_key, answer_key in (("question_id", "text"), ("questionId", "prediction"), ("sample_id", "output")):
        value = [{id_key: key, answer_key: answer, "prompt": "?", "answer_id": "x"} for key, answer in ANSWERS.items()]
        assert {key: each.output for key, each in read(tmp_path, root, value).items()} == ANSWERS


def test_captions_are_read_by_id_and_by_file_name(tmp_path: Path, root: Path) -> None:
    expected = {"139": "a room", "285": "a bear"}
    for ids in ((139, 285), ("COCO_val2014_000000000139.jpg", "COCO_val2014_000000000285.jpg")):
        value = [{"image_id": key, "caption": text} for key, text in zip(ids, expected.values(), strict=True)]
        found = read(tmp_path, root, value, "coco_caption")
        assert {key: each.output for key, each in found.items()} == expected


@pytest.mark.parametrize("form", ["box_0_1", "box_pixels", "box_999", "box_1000"])
def test_boxes_reach_the_metric_in_pixels_whatever_the_extraction(tmp_path: Path, root: Path, form: str) -> None:
    task, dataset = load("refcoco", root)
    task = apply(task, overrides={"extract": form})
    boxes = {"0": [4.5, 3.0, 24.5, 18.0], "1": [0.1, 1e-7, 39.99, 29.123456], "10": None}
    path = write_json(tmp_path / "boxes.json", [{"sent_id": int(key), "bbox": box} for key, box in boxes.items()])
    found = read_predictions(path, task, dataset)
    for sample in dataset.samples:
        answer = extract(task.extract, found[sample.id].output or "", sample)
        box = boxes[sample.id]
        assert answer == (None if box is None else pytest.approx(box, rel=1e-6, abs=1e-5))
    scores = score(task, dataset, found, MetricSettings())["scores"]
    assert scores["Acc@0.5"] == pytest.approx(1 / 3)
    assert scores["parsed"] == pytest.approx(2 / 3)


def test_boxes_in_pixels_are_not_read_as_something_else(tmp_path: Path, root: Path) -> None:
    task, dataset = load("refcoco", root)
    task = apply(task, overrides={"extract": "box_square"})
    path = write_json(tmp_path / "boxes.json", [{"sent_id": 0, "bbox": [1, 2, 3, 4]}])
    with pytest.raises(ResultsError, match="pixels, which extract=box_square does not read"):
        read_predictions(path, task, dataset, allow_partial=True)


@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_boxes_in_pixels_are_exact(root: Path, tmp_path: Path, box: list[float]) -> None:
    task, dataset = load("refcoco", root)
    task = apply(task, overrides={"extract": "box_pixels"})
    path = write_json(tmp_path / "boxes.json", [{"sent_id": 0, "bbox": box}])
    found = read_predictions(path, task, dataset, allow_partial=True)
    assert extract(task.extract, found["0"].output or "", dataset.samples[0]) == pytest.approx(
        tuple(box), abs=1e-17, rel=0
    )


def test_pairs_are_read(tmp_path: Path, root: Path) -> None:
    value = [
        {"image_id": 139, "pairs": [[100, 0.9, 1.5], ["103", 0.1, -2]]},
        {"image_id": 285, "pairs": [[103, 0.8, 2.0], [100, 0.2, None]]},
    ]
    found = read(tmp_path, root, value, "retrieval")
    assert found["139"].pairs == (("100", 0.9, 1.5), ("103", 0.1, -2.0))
    assert found["285"].pairs == (("103", 0.8, 2.0), ("100", 0.2, None))


# --- refusing --------------------------------------------------------------------------------------------------------


def test_missing_unknown_and_duplicate_ids_are_named(tmp_path: Path, root: Path) -> None:
    value = records()
    value[1]["question_id"] = 7
    value.append(value[0])
    with pytest.raises(ResultsError) as caught:
        read(tmp_path, root, value)
    message = str(caught.value)
    assert "does not answer vqav2/val (4 samples)" in message
    assert "1 ids stand twice: 139000" in message
    assert "1 ids are not in vqav2/val: 7" in message
    assert "1 ids of the dataset are missing (allow_partial=true scores the others): 139001" in message


def test_missing_ids_may_be_allowed_others_not(tmp_path: Path, root: Path) -> None:
    assert list(read(tmp_path, root, records()[:2], allow_partial=True)) == ["139000", "139001"]
    with pytest.raises(ResultsError, match="1 ids are not in"):
        read(tmp_path, root, [*records(), {"question_id": 7, "answer": "x"}], allow_partial=True)
    with pytest.raises(ResultsError, match="1 ids stand twice"):
        read(tmp_path, root, [*records(), records()[0]], allow_partial=True)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "holds no record"),
        ([{"id": 1}], "should have 'question_id' and 'answer', but the first has 'id'"),
        (["talking"], "the first has str"),
        (
            [{"question_id": 139000, "answer": "x"}, {"question_id": 139001}],
            "record 1 should have .* but has question_id",
        ),
        ([{"question_id": 139000, "answer": 2}], r"record 0 \(id 139000\): an answer should be a text, but is 2"),
        ([{"question_id": 139000, "answer": None}], "leave out what was not answered"),
        ([{"question_id": 1.5, "answer": "x"}], r"an id should be a whole number or a text, but is 1\.5"),
        ([{"question_id": True, "answer": "x"}], "an id should be a whole number or a text, but is True"),
        ({"139000": "talking"}, "is one object, but should be a list of records"),
    ],
)
def test_files_of_another_shape_are_refused(tmp_path: Path, root: Path, value: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        read(tmp_path, root, value)


@pytest.mark.parametrize("box", [[1, 2, 3], "1,2,3,4", [1, 2, 3, "4"], [1, 2, 3, True], {"x": 1}, [1, 2, 3, 1e999]])
def test_what_is_no_box_is_refused(tmp_path: Path, root: Path, box: Any) -> None:
    with pytest.raises(ResultsError, match=r"a box should be \[x1, y1, x2, y2\] in pixels, or null"):
        read(tmp_path, root, [{"sent_id": 0, "bbox": box}], "refcoco")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({}, "pairs should be a list"),
        ([[100]], "a pair should be"),
        ([[100, "high"]], "a pair should be"),
        ([[100, 0.5, "high"]], "a pair should be"),
        ([[[100], 0.5]], "a pair should be"),
        ([[999, 0.5]], "text '999' is not among the 6 captions"),
        ([[100, 0.5], ["100", 0.4]], "text '100' stands twice"),
    ],
)
def test_what_are_no_pairs_is_refused(tmp_path: Path, root: Path, pairs: Any, message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        read(tmp_path, root, [{"image_id": 139, "pairs": pairs}], "retrieval", allow_partial=True)


def test_torn_files_are_refused_with_their_place(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2", root)
    whole = json.dumps(records())
    lines = "\n".join(json.dumps(record) for record in records())
    path = tmp_path / "torn"
    for data, message in (
        (whole[:-5].encode(), "is not whole: .*line 1 column"),
        (lines[:-5].encode(), "line 4, is not a record of JSON"),
        (gzip.compress(whole.encode())[:-9], "cannot be read"),
        (b"\xff\xff", "cannot be read"),
        (b"", "holds no record"),
    ):
        path.write_bytes(data)
        with pytest.raises(ResultsError, match=message):
            read_predictions(path, task, dataset)
    with pytest.raises(ResultsError, match=r"predictions=.*gone does not exist"):
        read_predictions(tmp_path / "gone", task, dataset)


@given(st.text(max_size=80) | st.binary(max_size=80))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_no_file_crashes_the_reader(root: Path, tmp_path: Path, content: str | bytes) -> None:
    task, dataset = load("vqav2", root)
    path = tmp_path / "any"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    with contextlib.suppress(ResultsError):
        read_predictions(path, task, dataset)


# --- files for servers -----------------------------------------------------------------------------------------------


def answered(dataset: Dataset, output: str = " Yes\nno") -> dict[str, Prediction]:
    return {sample.id: Prediction(sample_id=sample.id, output=output) for sample in dataset.samples}


def written(task: Task, dataset: Dataset, tmp_path: Path, output: str = " Yes\nno") -> list[dict[str, Any]]:
    path = tmp_path / "out/submission.json"
    write_submission(task, dataset, answered(dataset, output), path)
    found: list[dict[str, Any]] = json.loads(path.read_text())
    return found


def test_vqav2_test_is_a_list_of_whole_numbers_and_texts(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2/test", root)
    found = written(task, dataset, tmp_path)
    assert found == [{"question_id": int(key), "answer": "Yes"} for key in ANSWERS]


def test_test_dev_is_filled_up_with_the_rest_of_test(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2/test-dev", root)
    dataset = dataclasses.replace(dataset, samples=dataset.samples[:1], unasked=("139001", "285000"))
    found = written(task, dataset, tmp_path)
    assert [(record["question_id"], record["answer"]) for record in found] == [
        (139000, "Yes"),
        (139001, ""),
        (285000, ""),
    ]
    official = dataclasses.replace(dataset, stamps=())
    with pytest.raises(
        ResultsError, match="the server wants 447,793 records, also empty ones, but only 3 ids are known"
    ):
        write_submission(task, official, answered(official), tmp_path / "never.json")
    assert not (tmp_path / "never.json").exists()


def test_textvqa_and_nocaps_have_the_keys_of_their_servers(tmp_path: Path, root: Path) -> None:
    assert written(*load("textvqa/test", root), tmp_path)[0] == {"question_id": 34602, "answer": "Yes"}
    assert written(*load("nocaps/test", root), tmp_path, "a dog")[2] == {"image_id": 2, "caption": "a dog"}
    assert written(*load("gqa/test", root), tmp_path, "No.\n")[0] == {"questionId": "201307251", "prediction": "no"}


def test_a_missing_or_failed_answer_is_refused_and_nothing_written(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2/test", root)
    predictions = answered(dataset)
    predictions["139000"] = Prediction(sample_id="139000", output=None, error="no image")
    del predictions["285000"]
    path = tmp_path / "submission.json"
    with pytest.raises(IncompleteError, match=r"2 of 4 samples have no answer \(139000, 285000\)"):
        write_submission(task, dataset, predictions, path)
    assert not path.exists()


def test_odd_characters_survive_or_become_one_that_json_can_hold(tmp_path: Path, root: Path) -> None:
    task, dataset = load("vqav2/test", root)
    assert written(task, dataset, tmp_path, "caf\xe9 \U0001f600")[0]["answer"] == "caf\xe9 \U0001f600"
    assert written(task, dataset, tmp_path, "cut \ud83d")[0]["answer"] == "cut ?"


def test_what_is_written_is_read_back(tmp_path: Path, root: Path) -> None:
    for name in ("vqav2", "textvqa", "nocaps", "gqa", "coco_caption"):
        task, dataset = load(name, root)
        path = tmp_path / f"{name}.json"
        write_submission(task, dataset, answered(dataset, "a dog"), path)
        assert {each.output for each in read_predictions(path, task, dataset).values()} == {"a dog"}


def test_retrieval_has_no_server(tmp_path: Path, root: Path) -> None:
    with pytest.raises(ResultsError, match="retrieval/coco has no server that takes a file of answers"):
        write_submission(*load("retrieval", root), {}, tmp_path / "x.json")


# --- real files ------------------------------------------------------------------------------------------------------


def test_llavas_gqa_answers_score_as_published_and_nothing_without_extraction() -> None:
    task = resolve_task("gqa")
    given_files = {"questions": shared("data/gqa/testdev_balanced_questions.json.gz")}
    dataset = load_dataset(task, kind="files", given=given_files, images_needed=False)
    found = read_predictions(shared("data/gqa/llava-v1.5-13b_answers.jsonl.gz"), task, dataset)
    result = score(task, dataset, found, MetricSettings())
    assert round(100 * result["scores"]["accuracy"], 3) == 63.309
    assert result["extract"] == "first_line+rstrip_period+lower"
    raw = score(apply(task, overrides={"extract": "none"}), dataset, found, MetricSettings())
    assert raw["scores"]["accuracy"] == 0.0


def test_real_result_files_join_their_official_ids() -> None:
    task = resolve_task("coco_caption")
    given_files = {"annotations": shared("data/coco_captions/captions_karpathy_test5k.json.gz")}
    dataset = load_dataset(task, kind="files", given=given_files, images_needed=False)
    found = read_predictions(shared("data/coco_caption_results/show_edit_tell/rl_caps.json.gz"), task, dataset)
    assert len(found) == 5000
    assert task.expected is not None
    assert dataset.fingerprint == task.expected.fingerprint
