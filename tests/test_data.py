"""python -m pytest tests/test_data.py: official files read, or refused with what is wrong and the way out."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.data import FilesSource, check_expected, check_samples, fingerprint, load_dataset, read_json, summarize
from evalkit.errors import ConfigError, DataError
from evalkit.registry import load_tasks, resolve_task
from evalkit.types import Dataset, Expected, Sample, Slot, Task, Text
from tests.official import COCO_IDS, coco_captions, karpathy, nocaps, vqa_pair, write_all, write_image, write_json

VQA = resolve_task("vqav2")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("official"))


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, Path]:
    questions, annotations = vqa_pair()
    return {
        "questions": write_json(tmp_path / "q.json", questions),
        "annotations": write_json(tmp_path / "a.json", annotations),
    }


def load(task: Task, given: dict[str, Path], **kwargs: Any) -> Dataset:
    return load_dataset(task, kind="files", given=given, images_needed="images" in given, **kwargs)


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


# --- where a file is found -------------------------------------------------------------------------------------------


def test_given_files_make_a_custom_set(pair: dict[str, Path]) -> None:
    dataset = load(VQA, pair)
    assert dataset.stamps == ("custom",)
    assert [sample.id for sample in dataset.samples] == ["139000", "139001", "285000", "632000"]
    assert dataset.samples[0].image_ids == ("139",)
    assert dataset.samples[0].tags == {"answer_type": "other", "question_type": "what is the"}
    assert dataset.fingerprint == fingerprint(dataset.samples)


def test_a_folder_of_images_alone_makes_no_custom_set(root: Path) -> None:
    given = {"images": root / "coco/val2014"}
    dataset = load_dataset(VQA, kind="files", root=root, given=given, check=False)
    assert dataset.stamps == ("unchecked",)


def test_demo_is_stamped_and_not_held_against_the_manifest(root: Path) -> None:
    assert load_dataset(VQA, kind="files", root=root, demo=True).stamps == ("demo",)


def test_default_names_are_found_in_root_family_and_coco_folders_also_gzipped(tmp_path: Path) -> None:
    slots = (Slot(name="questions", default="q.json"),)
    for place, zipped in (("q.json", False), ("vqav2/q.json", True), ("coco/q.json", False)):
        folder = tmp_path / place.replace("/", "-")
        write_json(folder / place, [place], zipped=zipped)
        assert FilesSource(slots, folder, {}, "vqav2").read("questions") == [place]


def test_gzip_is_recognised_by_content(pair: dict[str, Path]) -> None:
    path = pair["questions"]
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert len(load(VQA, pair).samples) == 4


def test_a_given_file_is_not_cut_by_a_stray_default(tmp_path: Path, root: Path) -> None:
    """With data.annotations alone all images count, although dataset_coco.json lies below root."""
    task = resolve_task("coco_caption")
    captions = write_json(tmp_path / "mine.json", coco_captions())
    alone = load_dataset(task, kind="files", root=root, given={"annotations": captions}, images_needed=False)
    assert len(alone.samples) == 3
    both = {"annotations": captions, "karpathy": write_json(tmp_path / "k.json", karpathy())}
    assert len(load(task, both).samples) == 2
    assert len(load(task, {"karpathy": both["karpathy"]}).samples) == 2


def test_missing_files_are_named_with_the_way_out(tmp_path: Path, pair: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"vqav2 needs its questions.*data\.questions=FILE.*data\.root=DIR"):
        load(VQA, {})
    with pytest.raises(DataError, match=r"needs its questions.*v2_OpenEnded_mscoco_val2014_questions\.json"):
        load_dataset(VQA, kind="files", root=tmp_path)
    with pytest.raises(DataError, match=r"data\.root=.*nowhere is not a folder"):
        load_dataset(VQA, kind="files", root=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.annotations=.* does not exist"):
        load(VQA, {**pair, "annotations": tmp_path / "gone.json"})


def test_an_unknown_slot_lists_the_known_ones(pair: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"no file slot of vqav2 'question'; did you mean 'questions'.*annotations"):
        load(VQA, {"question": pair["questions"]})


# --- broken files ----------------------------------------------------------------------------------------------------


def test_truncated_json_is_refused_at_its_end(pair: dict[str, Path]) -> None:
    text = pair["annotations"].read_text()
    for length in (1, len(text) // 3, len(text) // 2, len(text) - 1):
        pair["annotations"].write_text(text[:length])
        with pytest.raises(
            DataError, match=r"a\.json \(data\.annotations\) (ends too early|is not JSON).*line 1, column"
        ):
            load(VQA, pair)


def test_truncated_gzip_is_refused(pair: dict[str, Path]) -> None:
    data = gzip.compress(pair["questions"].read_bytes())
    for length in (2, 11, len(data) // 2, len(data) - 1):
        pair["questions"].write_bytes(data[:length])
        with pytest.raises(DataError, match="gzip file cut short or damaged"):
            load(VQA, pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"[]", "no 'questions' at its top level, a list of 0"),
        (b"{}", "no 'questions' at its top level, an empty object"),
        (b'{"annotations": []}', "no 'questions' at its top level, an object with 'annotations'"),
        (b'{"questions": {}}', "should be a list of records"),
        (b'{"questions": [1]}', "record 0 should be an object, but is int"),
        (b'{"questions": []}', "no samples|no question"),
        (
            b'{"questions": [{"image_id": 1, "question": "?"}]}',
            "question 0 has no 'question_id'; it has image_id, question",
        ),
        (b"\xff\xfe\xfd", "is not text|is not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_files_of_another_shape_are_refused(pair: dict[str, Path], content: bytes, message: str) -> None:
    pair["questions"].write_bytes(content)
    pair["annotations"].write_text('{"annotations": []}')
    with pytest.raises(DataError, match=message):
        load(VQA, pair)


def test_a_folder_in_place_of_a_file_is_refused(pair: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        load(VQA, {**pair, "questions": tmp_path})


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    path = Path("x.json")

    class Held(type(path)):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            return data

    with contextlib.suppress(DataError):
        read_json(Held("x.json"))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_whatever_json_holds_is_read_back(value: Any) -> None:
    data = gzip.compress(json.dumps(value).encode())

    class Held(type(Path("x"))):  # type: ignore[misc]
        def read_bytes(self) -> bytes:
            return data

    assert read_json(Held("x.json.gz")) == value


# --- ids -------------------------------------------------------------------------------------------------------------


def test_duplicate_questions_are_named(pair: dict[str, Path]) -> None:
    edit(pair["questions"], lambda value: value["questions"].append(value["questions"][1]))
    with pytest.raises(DataError, match="1 sample ids that stand more than once: '139001'"):
        load(VQA, pair)


def test_duplicate_annotations_are_named(pair: dict[str, Path]) -> None:
    edit(pair["annotations"], lambda value: value["annotations"].append(value["annotations"][2]))
    with pytest.raises(DataError, match="annotation 4 repeats question id '285000'"):
        load(VQA, pair)


def test_duplicate_gqa_ids_are_named_although_json_would_keep_the_last(tmp_path: Path) -> None:
    record = '{"question": "Is it?", "imageId": "n1", "answer": "no"}'
    path = tmp_path / "q.json"
    path.write_text(f'{{"7": {record}, "8": {record}, "7": {record}}}')
    with pytest.raises(DataError, match="id '7' stands 2 times"):
        load(resolve_task("gqa"), {"questions": path})


def test_a_question_without_annotation_is_named(pair: dict[str, Path]) -> None:
    edit(pair["annotations"], lambda value: value["annotations"].pop(1))
    with pytest.raises(DataError, match="1 of 4 ids are among the questions but not the annotations: 139001"):
        load(VQA, pair)


def test_an_annotation_without_question_is_named(pair: dict[str, Path]) -> None:
    edit(pair["questions"], lambda value: value["questions"].pop())
    with pytest.raises(DataError, match="1 of 4 ids are among the annotations but not the questions: 632000"):
        load(VQA, pair)


def test_a_pair_about_other_images_is_refused(pair: dict[str, Path]) -> None:
    edit(pair["annotations"], lambda value: value["annotations"][0].update(image_id=285))
    with pytest.raises(DataError, match=r"question 139000 is about image 139 .* but about 285"):
        load(VQA, pair)


def test_only_the_fields_a_metric_needs_are_required(pair: dict[str, Path]) -> None:
    def bare(value: Any) -> None:
        for annotation in value["annotations"]:
            for name in ("question_type", "answer_type", "multiple_choice_answer", "image_id"):
                del annotation[name]
            for answer in annotation["answers"]:
                del answer["answer_confidence"]

    edit(pair["annotations"], bare)
    dataset = load(VQA, pair)
    assert dataset.samples[0].tags == {}
    assert dataset.samples[0].reference["answers"][0] == {"answer": "talking", "answer_id": 1}


def test_answers_without_ids_stay_without_as_the_official_script_sees_them(pair: dict[str, Path]) -> None:
    edit(pair["annotations"], lambda value: [answer.pop("answer_id") for answer in value["annotations"][0]["answers"]])
    assert load(VQA, pair).samples[0].reference["answers"][0] == {"answer": "talking"}


def test_check_samples_names_an_empty_set() -> None:
    with pytest.raises(DataError, match="vqav2/val has no samples"):
        check_samples((), "vqav2/val")


# --- images ----------------------------------------------------------------------------------------------------------


def test_an_annotation_that_names_missing_images_says_how_many(pair: dict[str, Path], tmp_path: Path) -> None:
    write_image(tmp_path / "images/COCO_val2014_000000000139.jpg")
    with pytest.raises(DataError, match=r"vqav2/val: 2 of 3 images are missing below .*images: 285, 632.*data\.images"):
        load(VQA, {**pair, "images": tmp_path / "images"})


def test_without_a_folder_of_images_scoring_works_and_running_says_what_is_missing(pair: dict[str, Path]) -> None:
    dataset = load(VQA, pair)
    with pytest.raises(DataError, match=r"no folder of images is known; give data\.images=DIR"):
        dataset.images.open("139")
    with pytest.raises(DataError, match=r"no folder of images is known; give data\.images=DIR"):
        load_dataset(VQA, kind="files", given=pair)


# --- manifests -------------------------------------------------------------------------------------------------------


def test_a_set_that_is_not_the_official_one_stops_with_both_numbers(root: Path) -> None:
    with pytest.raises(DataError, match=r"4 samples, official 214,354; 3 images, official 40,504.*data\.check=false"):
        load_dataset(VQA, kind="files", root=root)
    assert load_dataset(VQA, kind="files", root=root, check=False).stamps == ("unchecked",)


def _expected_as(task: Task, dataset: Dataset, **changes: Any) -> Task:
    return dataclasses.replace(task, expected=dataclasses.replace(summarize(dataset), source="the release", **changes))


def test_ids_are_held_against_the_fingerprint(root: Path) -> None:
    dataset = load_dataset(VQA, kind="files", root=root, check=False)
    assert load_dataset(_expected_as(VQA, dataset), kind="files", root=root).stamps == ()
    with pytest.raises(DataError, match=r"the counts agree, the ids do not: fingerprint .* official 00000"):
        load_dataset(_expected_as(VQA, dataset, fingerprint="0" * 64), kind="files", root=root)


def _dataset(ids: list[str], *, images: int | None = None, tags: dict[str, str] | None = None) -> Dataset:
    samples = tuple(
        Sample(id=key, image_ids=(str(place % (images or len(ids))),), tags=tags or {}) for place, key in enumerate(ids)
    )
    return Dataset(samples=samples, images=None)  # type: ignore[arg-type]


def test_the_trap_of_refcoco_val_is_caught() -> None:
    """The hub's val has 8,811 objects, UNC val and Google val mixed; that cannot be 10,834 expressions."""
    task = resolve_task("refcoco/val")
    assert task.expected is not None
    with pytest.raises(DataError, match="8,811 samples, official 10,834"):
        check_expected(_dataset([str(key) for key in range(8811)]), task.expected, task)


def test_the_trap_of_flickr30k_test_is_caught() -> None:
    """lmms-lab/flickr30k calls all images test."""
    task = resolve_task("retrieval/flickr30k")
    assert task.expected is not None
    with pytest.raises(DataError, match="31,783 samples, official 1,000"):
        check_expected(_dataset([str(key) for key in range(31783)]), task.expected, task)


def test_the_trap_of_the_nocaps_domains_is_caught() -> None:
    """nocaps.org counts 648, 2,938 and 914 images; the released JSON says otherwise."""
    task = resolve_task("nocaps/val")
    assert task.expected is not None
    domains = ["in-domain"] * 648 + ["near-domain"] * 2938 + ["out-domain"] * 914
    samples = tuple(
        Sample(id=str(key), image_ids=(str(key),), tags={"domain": domain}, reference={"captions": ["a"] * 10})
        for key, domain in enumerate(domains)
    )
    with pytest.raises(DataError, match=r"648 samples with domain=in-domain, official 417; 2,938 .*2,670; 914 .*1,413"):
        check_expected(Dataset(samples=samples, images=None), task.expected, task)  # type: ignore[arg-type]


def test_the_trap_of_six_captions_is_caught() -> None:
    """Ten images of Karpathy's test split have six captions; cut to five, 25,000 are left."""
    task = resolve_task("retrieval/coco")
    assert task.expected is not None
    dataset = _dataset([str(key) for key in range(5000)])
    texts = tuple(Text(id=str(key), text="", image_ids=(str(key // 5),)) for key in range(25000))
    with pytest.raises(DataError, match="25,000 texts, official 25,010"):
        check_expected(dataclasses.replace(dataset, texts=texts), task.expected, task)


@given(st.lists(st.text(min_size=1), unique=True, max_size=20), st.randoms())
def test_the_fingerprint_forgets_order_and_nothing_else(ids: list[str], chance: random.Random) -> None:
    samples = [Sample(id=key, image_ids=()) for key in ids]
    shuffled = chance.sample(samples, len(samples))
    assert fingerprint(samples) == fingerprint(shuffled)
    if samples:
        assert fingerprint(samples[1:]) != fingerprint(samples)
        assert fingerprint(samples[1:], [Text(id=ids[0], text="", image_ids=())]) != fingerprint(samples)


# --- what each reader makes of its files -----------------------------------------------------------------------------


def test_gqa_reads_what_its_metric_needs(root: Path, tmp_path: Path) -> None:
    task = resolve_task("gqa")
    questions = root / "gqa/testdev_balanced_questions.json"
    choices = write_json(tmp_path / "c.json", {"201307251": {"valid": ["yes", "no"], "plausible": ["no"]}})
    first, second = load(task, {"questions": questions, "choices": choices}).samples
    assert first.reference == {
        "answer": "no",
        "types": {"structural": "verify", "semantic": "global", "detailed": "weatherVerifyC"},
        "groups": {"global": None, "local": "01-weather_overcast"},
        "entailed": [],
        "is_balanced": True,
        "choices": {"valid": ["yes", "no"], "plausible": ["no"]},
        "semantic": [
            {"operation": "select", "argument": "scene"},
            {"operation": "verify weather", "argument": "overcast"},
        ],
    }
    assert second.reference["choices"] is None
    assert first.tags == {"structural": "verify", "semantic": "global"}


def test_gqa_needs_no_more_than_answer_question_and_image(tmp_path: Path) -> None:
    path = write_json(tmp_path / "q.json", {"1": {"question": "Is it?", "imageId": "n1", "answer": "no"}})
    (sample,) = load(resolve_task("gqa"), {"questions": path}).samples
    assert sample.reference["types"] == {}
    assert "semantic" not in sample.reference
    path.write_text(json.dumps([{"question": "Is it?"}]))
    with pytest.raises(DataError, match="should be an object of records by question id"):
        load(resolve_task("gqa"), {"questions": path})


def test_textvqa_reads_the_release_and_the_vqa_pair(root: Path, pair: dict[str, Path]) -> None:
    task = resolve_task("textvqa")
    release = load(task, {"annotations": root / "textvqa/TextVQA_0.5.1_val.json"}).samples
    assert release[0].id == "34602"
    assert release[0].image_ids == ("003a8ae2ef43b900",)
    assert release[0].reference["answers"][9] == {"answer": "talking", "answer_id": 10}
    assert [sample.id for sample in load(task, pair).samples] == ["139000", "139001", "285000", "632000"]
    with pytest.raises(DataError, match="question 0 has no 'answers'"):
        load(task, {"annotations": root / "textvqa/TextVQA_0.5.1_test.json"})


def test_refcoco_boxes_become_corners_and_sentences_samples(root: Path) -> None:
    dataset = load_dataset(resolve_task("refcoco"), kind="files", root=root, check=False)
    assert [sample.id for sample in dataset.samples] == ["0", "1", "10"]
    first = dataset.samples[0]
    assert first.fields == {"expression": "man in red", "width": 40, "height": 30}
    assert first.reference == {"box": [4.5, 3.0, 24.5, 18.0]}
    assert first.image_ids == (str(COCO_IDS[0]),)


def test_refcoco_files_of_different_sets_are_refused(root: Path, tmp_path: Path) -> None:
    lonely = json.loads((root / "refcoco/instances.json").read_text())
    lonely["annotations"].pop(1)
    given = {"refs": root / "refcoco/refs(unc).p", "instances": write_json(tmp_path / "i.json", lonely)}
    with pytest.raises(
        DataError, match=r"refs\(unc\)\.p: reference 1 names annotation 1001, which i\.json does not have"
    ):
        load(resolve_task("refcoco"), given)


def test_nocaps_finds_images_by_file_name_and_keeps_the_domain(root: Path) -> None:
    dataset = load_dataset(resolve_task("nocaps"), kind="files", root=root, check=False)
    assert dataset.samples[1].id == "1"
    assert dataset.samples[1].image_ids == ("0013ea2087020901.jpg",)
    assert dataset.samples[1].tags == {"domain": "near-domain"}
    assert len(dataset.samples[1].reference["captions"]) == 3


@pytest.mark.parametrize("domain", ["in-domain", "out-domain"])
def test_captions_of_unlisted_images_and_images_without_captions_are_refused(tmp_path: Path, domain: str) -> None:
    task = resolve_task("nocaps")
    found = nocaps()
    found["annotations"] = [each for each in found["annotations"] if each["image_id"] != 2]
    with pytest.raises(DataError, match=r"1 of 3 images have no caption: 2"):
        load(task, {"annotations": write_json(tmp_path / "bare.json", found)})
    found["annotations"].append({"image_id": 99, "caption": "?"})
    with pytest.raises(DataError, match="captions image '99', which the file does not list"):
        load(task, {"annotations": write_json(tmp_path / "more.json", found)})


def test_retrieval_keeps_all_captions_in_file_order(root: Path) -> None:
    dataset = load_dataset(resolve_task("retrieval"), kind="files", root=root, check=False)
    assert [sample.id for sample in dataset.samples] == ["139", "285"]
    assert [text.id for text in dataset.texts] == [str(key) for key in range(100, 106)]
    assert dataset.texts[3].image_ids == ("285",)
    assert dataset.samples[1].reference == {"text_ids": ["103", "104", "105"]}
    flickr = load_dataset(resolve_task("retrieval/flickr30k"), kind="files", root=root, check=False)
    assert [sample.id for sample in flickr.samples] == ["13900", "28500"]


def test_retrieval_takes_a_caption_file_as_all_its_images(tmp_path: Path) -> None:
    given = {"karpathy": write_json(tmp_path / "captions.json", coco_captions())}
    dataset = load(resolve_task("retrieval"), given)
    assert len(dataset.samples) == 3
    assert len(dataset.texts) == 9


def test_answers_to_rank_are_read_when_given(pair: dict[str, Path], tmp_path: Path) -> None:
    given = {**pair, "answers": write_json(tmp_path / "list.json", ["yes", "no", "yes"])}
    assert load(VQA, given).candidates == ("yes", "no")
    assert load(VQA, pair).candidates == ()
    with pytest.raises(DataError, match="should be a list of texts, but is an object"):
        load(VQA, {**pair, "answers": write_json(tmp_path / "dict.json", {"yes": 1})})


def test_test_dev_knows_the_ids_its_server_also_wants(tmp_path: Path) -> None:
    task = resolve_task("vqav2/test-dev")
    questions, _ = vqa_pair()
    given = {
        "test_questions": write_json(tmp_path / "all.json", questions),
        "questions": write_json(tmp_path / "dev.json", {**questions, "questions": questions["questions"][:1]}),
    }
    dataset = load(task, given)
    assert [sample.id for sample in dataset.samples] == ["139000"]
    assert dataset.unasked == ("139001", "285000", "632000")


def test_every_manifest_names_its_source() -> None:
    for family in ("vqav2", "okvqa", "gqa", "textvqa", "nocaps", "coco_caption", "refcoco", "retrieval", "imagenet"):
        for task in load_tasks(family):
            assert isinstance(task.expected, Expected)
            assert task.expected.samples
            assert task.expected.source
