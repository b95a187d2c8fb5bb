"""python -m pytest tests/test_registry.py: names become tasks, settings lie over each other, mistakes are named."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.errors import ConfigError
from evalkit.paths import bundled
from evalkit.prompts import clean, fields_of, fill, fill_template
from evalkit.registry import SETTINGS, apply, known_tasks, load_tasks, resolve_task
from evalkit.types import Sample

FAMILIES = ("coco_caption", "gqa", "imagenet", "nocaps", "okvqa", "refcoco", "retrieval", "textvqa", "vqav2")
DEFAULTS = {
    "vqav2": "vqav2/val",
    "okvqa": "okvqa/val",
    "gqa": "gqa/testdev",
    "textvqa": "textvqa/val",
    "nocaps": "nocaps/val",
    "coco_caption": "coco_caption/test",
    "refcoco": "refcoco/val",
    "retrieval": "retrieval/coco",
    "imagenet": "imagenet/val",
}
MINE = """
from evalkit.metrics.vqa import vqa_metric
from evalkit.types import Dataset, Sample, Task


def load(source):
    return Dataset(samples=(Sample(id="1", image_ids=("1",), fields={"question": "?"}),), images=source.images())


def task(variant):
    return Task(
        name=f"mine/{variant}", kind="generate", summary="my own", load=load, metrics=(vqa_metric("official"),),
        primary="vqa_accuracy", prompts={"completion": "{question}"},
    )


TASKS = (task("val"), task("test"))
"""


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_families_are_the_files_in_tasks() -> None:
    assert known_tasks() == FAMILIES
    assert not (bundled("tasks") / "__init__.py").exists()


def test_knowing_the_names_imports_no_task() -> None:
    code = (
        "import sys; from evalkit.registry import known_tasks; known_tasks();"
        "print(sorted(name for name in sys.modules if name.startswith('evalkit.tasks.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tasks_import_neither_torch_nor_datasets_nor_pandas() -> None:
    code = (
        "import sys; from evalkit.registry import known_tasks, load_tasks;"
        "[load_tasks(name) for name in known_tasks()];"
        "print([name for name in ('torch', 'datasets', 'pandas', 'transformers', 'jpype') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bare_name_is_the_default_variant(family: str) -> None:
    assert resolve_task(family).name == DEFAULTS[family]
    for task in load_tasks(family):
        assert task.family == family
        assert resolve_task(task.name) is task


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no task 'vqa2'; did you mean 'vqav2'\? Known: coco_caption, .*\.py file"):
        resolve_task("vqa2")
    with pytest.raises(ConfigError, match=r"no variant of refcoco 'testa'; did you mean 'test.'.*plus-val"):
        resolve_task("refcoco/testa")
    with pytest.raises(ConfigError, match="no task ''"):
        resolve_task("")


def test_a_file_of_ones_own_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    assert resolve_task("./mine.py").name == "mine/val"
    assert resolve_task("mine.py:test").name == "mine/test"
    assert resolve_task(str(tmp_path / "mine.py")).load.__module__ in sys.modules
    with pytest.raises(ConfigError, match=r"no variant of \./mine\.py 'train'; known: test, val"):
        resolve_task("./mine.py:train")
    with pytest.raises(ConfigError, match=r"task file gone\.py does not exist; known tasks: coco_caption"):
        resolve_task("gone.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TASKS = (", r"mine\.py cannot be loaded: SyntaxError at line 1"),
        ("x = 1\n\nimport nothing_of_that_name\n", r"cannot be loaded: ModuleNotFoundError at line 3: No module named"),
        ("x = 1\ndef f():\n    return y\nf()\n", r"cannot be loaded: NameError at line 3: name 'y' is not defined"),
        ("x = 1", r"should define TASKS = \(Task\(\.\.\.\), \.\.\.\)"),
        ("TASKS = ()", "with at least one task"),
        ("TASKS = ('vqav2',)", "should define TASKS"),
        (MINE + "TASKS = (task('val'), task('val'))", "names a task twice: mine/val, mine/val"),
    ],
)
def test_a_broken_file_says_what_and_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        resolve_task(str(path))


def test_published_tasks_load_and_a_broken_plug_in_hurts_only_when_selected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_docvqa.py").write_text(MINE)
    (tmp_path / "their_broken.py").write_text("raise RuntimeError('out of order')")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        importlib.metadata.EntryPoint("docvqa", "their_docvqa:TASKS", "evalkit.tasks"),
        importlib.metadata.EntryPoint("broken", "their_broken:TASKS", "evalkit.tasks"),
        importlib.metadata.EntryPoint("vqav2", "their_docvqa:TASKS", "evalkit.tasks"),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "evalkit.tasks" else [])
    assert known_tasks() == tuple(sorted({*FAMILIES, "docvqa", "broken"}))
    assert resolve_task("docvqa/test").name == "mine/test"
    assert resolve_task("vqav2").name == "vqav2/val"  # ours are not replaced from outside
    with pytest.raises(
        ConfigError, match=r"plug-in 'broken' \(their_broken:TASKS\) cannot be loaded: RuntimeError.*order"
    ):
        resolve_task("broken")


# --- settings --------------------------------------------------------------------------------------------------------

VQA = resolve_task("vqav2")


def test_each_layer_lies_over_the_one_before() -> None:
    protocol = {
        "vqav2": {"prompt_style": "bare", "decoding": {"num_beams": 5, "length_penalty": -1}},
        "vqav2/val": {"decoding": {"num_beams": 3}, "metric_variant": "legacy"},
        "gqa": {"prompt": "not for this one"},
    }
    assert apply(VQA) == VQA
    assert apply(VQA, prompt_style_of_model="chat").prompt_style == "chat"
    published = apply(VQA, prompt_style_of_model="chat", protocol=protocol)
    assert published.prompt_style == "bare"
    assert published.decoding.num_beams == 3
    assert published.decoding.length_penalty == -1.0
    assert published.decoding.max_new_tokens == VQA.decoding.max_new_tokens
    assert published.variant == "legacy"
    asked = apply(VQA, protocol=protocol, overrides={"decoding": {"num_beams": 1}, "prompt_style": "chat", "k": None})
    assert (asked.prompt_style, asked.decoding.num_beams, asked.decoding.length_penalty) == ("chat", 1, -1.0)
    dotted = apply(VQA, protocol=protocol, overrides={"decoding.num_beams": 2})
    assert (dotted.decoding.num_beams, dotted.decoding.length_penalty) == (2, -1.0)


def test_a_style_on_the_command_line_discards_a_protocols_prompt() -> None:
    protocol = {"vqav2": {"prompt": "Q: {question} A:"}}
    assert apply(VQA, protocol=protocol).template == "Q: {question} A:"
    assert apply(VQA, protocol=protocol, overrides={"prompt_style": "bare"}).template == "{question} Answer:"
    both = {"prompt_style": "bare", "prompt": "{question}!"}
    assert apply(VQA, protocol=protocol, overrides=both).template == "{question}!"


def test_a_models_style_that_a_task_lacks_leaves_the_tasks_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    assert apply(resolve_task(str(path)), prompt_style_of_model="chat").prompt_style == "completion"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": "x"}, r"no task setting 'metrics'.*image_size"),
        ({"promt": "x"}, "no task setting 'promt'; did you mean 'prompt'"),
        ({"prompt_style": "caht"}, r"no prompt_style of vqav2/val 'caht'; did you mean 'chat'"),
        ({"prompt": "{qestion"}, "may hold words and plain {fields} only"),
        ({"prompt": "{question.__class__}"}, "may hold words and plain {fields} only"),
        ({"prompt": "{question!r}"}, "may hold words and plain {fields} only"),
        ({"prompt": "{question:>9999999}"}, "may hold words and plain {fields} only"),
        ({"prompt": "{0}"}, "may hold words and plain {fields} only"),
        ({"prompt": "{}"}, "may hold words and plain {fields} only"),
        ({"question_filter": "blipp"}, "no question_filter 'blipp'; did you mean 'blip'"),
        ({"extract": "strip+lowr"}, "no extraction 'lowr'; did you mean 'lower'"),
        ({"metric_variant": "new"}, "no VQA variant 'new'"),
        ({"image_size": 0}, "image_size should be a whole number above 0, but is 0"),
        ({"image_size": True}, "image_size should be a whole number above 0"),
        ({"k": 1.5}, r"k should be a whole number above 0, but is 1\.5"),
        ({"decoding": 5}, "decoding should be a mapping"),
        ({"decoding": {"beams": 5}}, "no decoding setting 'beams'; did you mean 'num_beams'"),
        ({"decoding": {"num_beams": 0}}, r"decoding\.num_beams=0 is below 1"),
        ({"decoding": {"num_beams": "5"}}, r"decoding\.num_beams should be a whole number, but is '5'"),
        ({"decoding": {"num_beams": 2.0}}, r"decoding\.num_beams should be a whole number"),
        ({"decoding": {"temperature": "hot"}}, r"decoding\.temperature should be a number"),
        ({"decoding": {"temperature": -1}}, r"decoding\.temperature=-1 is below 0"),
        ({"decoding": {"top_p": float("nan")}}, r"decoding\.top_p=nan"),
        ({"decoding": {"min_new_tokens": 11}}, r"min_new_tokens=11 is above decoding\.max_new_tokens=10"),
    ],
)
@pytest.mark.parametrize("layer", ["protocol", "overrides"])
def test_a_wrong_setting_is_named_with_its_place(layer: str, settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"protocol": {"vqav2": settings}} if layer == "protocol" else {"overrides": settings}
    with pytest.raises(ConfigError, match=message) as caught:
        apply(VQA, **arguments)
    place = "protocol.vqav2: " if layer == "protocol" else "the command line: "
    assert str(caught.value).startswith((place, place.replace(": ", ": decoding.")))


def test_a_metric_without_variants_refuses_one() -> None:
    with pytest.raises(ConfigError, match="the metric of gqa/testdev has no variants"):
        apply(resolve_task("gqa"), overrides={"metric_variant": "official"})
    assert apply(resolve_task("refcoco"), overrides={"metric_variant": "refer"}).variant == "refer"
    assert apply(resolve_task("retrieval"), overrides={"metric_variant": "itm"}).variant == "itm"


def test_every_setting_can_be_set() -> None:
    settings = {
        "prompt": "{question}",
        "prompt_style": "chat",
        "question_filter": "blip",
        "decoding": {"stop": "\n", "temperature": 1, "num_beams": 2},
        "image_size": 364,
        "extract": "none",
        "metric_variant": "m4c",
        "k": 16,
    }
    assert set(settings) == set(SETTINGS)
    task = apply(VQA, overrides=settings)
    assert task.decoding.stop == ("\n",)
    assert task.decoding.temperature == 1.0
    assert (task.image_size, task.k, task.extract, task.question_filter) == (364, 16, "none", "blip")
    assert apply(task, overrides={"question_filter": "none"}).question_filter is None


# --- prompts ---------------------------------------------------------------------------------------------------------

SAMPLE = Sample(id="1", image_ids=("1",), fields={"question": 'Is this "A. Cat"?', "width": 640})


def test_a_template_takes_the_samples_fields() -> None:
    assert fill(VQA, SAMPLE) == 'Question: Is this "A. Cat"? Answer:'
    assert fill_template("{question} ({width}) {{x}}", SAMPLE) == 'Is this "A. Cat"? (640) {x}'
    assert fill_template("no field", SAMPLE) == "no field"


def test_a_field_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"names {expression}.*their fields: {question}, {width} \(write {{ and }}"):
        fill_template("{expression}", SAMPLE)


def test_braces_in_a_question_stay_what_they_are() -> None:
    sample = Sample(id="1", image_ids=("1",), fields={"question": "{width} {question} {{"})
    assert fill(VQA, sample) == "Question: {width} {question} {{ Answer:"


def test_the_blip_filters_are_laviss() -> None:
    """BlipQuestionProcessor and BlipCaptionProcessor of LAVIS, by their own rules."""
    assert clean('What\'s "that" (red) thing; here? No.  ', "blip") == "what's that red thing here? no"
    assert clean(" ".join(str(word) for word in range(60)), "blip").split()[-1] == "49"
    assert clean("A man... (old)\n", "blip-caption") == "a man old"
    assert clean("As it is. ", None) == "As it is. "
    assert fill_template("{question}", SAMPLE, question_filter="blip") == "is this a cat?"
    with pytest.raises(ConfigError, match="no question_filter 'clip'; did you mean 'blip'"):
        clean("x", "clip")


@given(st.text())
def test_no_template_crashes_or_reaches_beyond_the_fields(template: str) -> None:
    try:
        names = fields_of(template)
        assert all(name.isidentifier() for name in names)
        fill_template(template, SAMPLE)
    except ConfigError:
        pass


@given(st.text())
def test_no_question_crashes_a_filter_and_filters_settle(question: str) -> None:
    once = clean(question, "blip")
    assert len(once.split(" ")) <= 50
    clean(question, "blip-caption")
