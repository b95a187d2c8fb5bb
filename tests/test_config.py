"""The command line's keys: a typo is an error that lists what was meant, a text arrives as it was typed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evalkit import config
from evalkit.config import DataConfig, Override, RunConfig
from evalkit.errors import ConfigError
from evalkit.types import Decoding


def run(*words: str, extra: Path | None = None) -> RunConfig:
    return config.compose(config.parse(words, extra), extra)


def test_every_default_is_that_of_the_dataclass() -> None:
    got = run("model=fake", "task=vqav2")
    wanted = RunConfig(
        task=("vqav2",), model={"_target_": "evalkit.models.fake.Fake", "name": "fake"}, data=DataConfig(kind="hub")
    )
    assert got == wanted


def test_without_a_word_it_is_the_demo() -> None:
    got = run()
    assert (got.model["name"], got.data.kind) == ("blip2-tiny", "demo")
    assert set(got.task) == {"vqav2", "gqa", "okvqa", "textvqa", "nocaps", "coco_caption", "refcoco", "retrieval"}
    assert run("limit=3").limit == 3


@pytest.mark.parametrize(
    ("word", "tasks"),
    [
        ("task=vqav2", ("vqav2",)),
        ("task=[vqav2,gqa]", ("vqav2", "gqa")),
        ("task=vqav2,gqa", ("vqav2", "gqa")),
        ("task=[ vqav2 , gqa/val ]", ("vqav2", "gqa/val")),
        ("task=./mine.py", ("./mine.py",)),
        ("task=[./mine (1).py:val,vqav2]", ("./mine (1).py:val", "vqav2")),
    ],
)
def test_tasks_by_name_variant_list_or_file(word: str, tasks: tuple[str, ...]) -> None:
    assert run("model=fake", word).task == tasks


def test_every_suite_names_known_tasks() -> None:
    from evalkit.registry import resolve_task

    suites = config.options("suite")
    assert {"all", "vqa", "captions", "zero-shot"} <= set(suites)
    for suite in suites:
        tasks = run("model=fake", f"suite={suite}").task
        assert tasks
        assert all(resolve_task(task) for task in tasks)


@pytest.mark.parametrize("name", config.options("model"))
def test_every_model_file_composes_and_sets_nothing_but_the_model(name: str) -> None:
    words = ["model._target_=a.B"] if name == "custom" else []
    got = run(f"model={name}", "task=vqav2", *words)
    assert isinstance(got.model["_target_"], str)
    assert got.model["name"]
    plain = run("model=fake", "task=vqav2")
    own = {"model": {}, "protocol": {}, "prompt_style": None}
    assert dataclasses.replace(got, **own) == dataclasses.replace(plain, **own)


def test_values_take_the_type_of_their_key() -> None:
    got = run(
        "model=fake", "task=vqav2", "limit=5", "k=64", "image_size=224", "allow_partial=true", "max_failed=2",
        "out=/x/y", "devices=2", "engine.image_batch=3", "engine.heartbeat_s=9", "metrics.names=[CIDEr,Bleu_4]",
        "data.check=false", "data.max_pixels=1000", "decoding.num_beams=5", "decoding.length_penalty=-1",
        "decoding.stop=[a,b]",
        "model.seed=7", "model.fail_on=[x,y]",
    )  # fmt: skip
    assert (got.limit, got.k, got.image_size, got.allow_partial, got.max_failed) == (5, 64, 224, True, 2)
    assert (got.out, got.devices) == ("/x/y", "2")
    assert (got.engine.image_batch, got.engine.heartbeat_s) == (3, 9.0)
    assert isinstance(got.engine.heartbeat_s, float)
    assert got.metrics.names == ("CIDEr", "Bleu_4")
    assert (got.data.check, got.data.max_pixels) == (False, 1000)
    assert got.decoding == {"num_beams": 5, "length_penalty": -1, "stop": ["a", "b"]}
    assert (got.model["seed"], got.model["fail_on"]) == (7, ["x", "y"])


def test_one_word_is_a_list_of_one_where_a_list_is_wanted() -> None:
    assert run("model=fake", "task=gqa", "metrics.names=CIDEr").metrics.names == ("CIDEr",)


def test_any_other_key_below_data_names_a_file() -> None:
    got = run("model=fake", "task=vqav2", "data=files", "data.root=/r", "data.questions=/q (1).json", "data.refs=a=b")
    assert (got.data.kind, got.data.root) == ("files", "/r")
    assert got.data.slots == {"questions": "/q (1).json", "refs": "a=b"}


def test_whether_a_prompt_style_was_asked_for_is_known() -> None:
    assert not run("model=blip2-opt", "task=vqav2").style_asked
    assert run("model=blip2-opt", "task=vqav2", "prompt_style=chat").style_asked


TEXT_KEYS = ("prompt", "out", "data.refs", "data.questions", "data.root", "model.name", "model.checkpoint", "extract")
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.lists(
    st.sampled_from(
        ["\\", "'", '"', "${", "}", "{", "$", "a", " ", ",", "=", "[", "]", "(", ")", ":", "#", "~", "\n", "@"]
    ),
    max_size=10,
).map("".join)


@settings(max_examples=15, deadline=None)
@given(key=st.sampled_from(TEXT_KEYS), value=words)
@example("data.refs", "/d/refs(unc).p")
@example("prompt", "Question: {question} Answer:")
@example("prompt", "It's \"a, b\" = \\'c\\' \\")
@example("prompt", "${oc.env:HOME} \\${x} ${prompt")
@example("prompt", "ends with a backslash and a newline \\\n")
@example("prompt", "")
@example("prompt", "???")
@example("prompt", "null")
@example("prompt", "[1,2]")
@example("prompt", "a,b")
@example("prompt", "1e5")
@example("out", "C:\\runs\\")
@example("model.checkpoint", "org/name@v1.0")
def test_a_text_arrives_as_it_was_typed(key: str, value: str) -> None:
    got = run("model=fake", "task=vqav2", f"{key}={value}")
    top, _, field = key.partition(".")
    if top == "model":
        assert got.model[field] == value
    elif top == "data":
        assert (got.data.root if field == "root" else got.data.slots[field]) == value
    else:
        assert getattr(got, key) == value


@given(words)
@settings(max_examples=50, deadline=None)
def test_in_a_sweep_a_text_is_one_value(value: str) -> None:
    """A prompt with commas is no list of prompts."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (line,) = config.for_hydra([Override(key="prompt", value=value)], sweep=True)
    override = OverridesParser.create().parse_override(line)
    assert not override.is_sweep_override()


def test_in_a_sweep_names_of_tasks_and_models_are_taken_apart() -> None:
    lines = config.for_hydra([Override(key="model", value="a,b"), Override(key="task", value="vqav2,gqa")], sweep=True)
    assert lines == ["model=a,b", "++task=vqav2,gqa"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["taskk=vqav2"], "no key 'taskk'; did you mean 'task'?"),
        (["model=fake", "decoding.beams=5"], "no key 'decoding.beams'; did you mean 'decoding.num_beams'?"),
        (["model=fake", "engine.image_bach=5"], "did you mean 'engine.image_batch'?"),
        (["model=fake", "metrics.jav=x"], "did you mean 'metrics.java'?"),
        (["model=fake", "data.kind=demo"], "no key 'data.kind'"),
        (["model=fake", "engine.kind=ray"], "no key 'engine.kind'"),
        (["model=fake", "style_asked=true"], "no key 'style_asked'"),
        (["model=fke"], "no model 'fke'; did you mean 'fake'?"),
        (["model="], "no model ''"),
        (["model=fake,orcle"], "no model 'orcle'; did you mean 'oracle'?"),
        (["model=fake", "suite=al"], "no suite 'al'; did you mean 'all'?"),
        (["model=fake", "data=demos"], "no data 'demos'; did you mean 'demo'?"),
        (["model=fake", "engine=lokal"], "no engine 'lokal'; did you mean 'local'?"),
        (["model=fake", "task=vqa2"], "no task 'vqa2'; did you mean 'vqav2'?"),
        (["model=fake", "task=[vqav2,gqaa]"], "no task 'gqaa'; did you mean 'gqa'?"),
        (["model=fake", "task="], "task= names no task"),
        (["model=fake", "task=[]"], "task= names no task"),
        (["model=fake", "task=vqav2", "suite=all"], "task= and suite= both name tasks"),
        (["task=vqav2"], "which model? Give model=NAME; known: "),
        (["lst"], "'lst' is not an option of the form key=value, nor a verb; verbs: list"),
        (["=5"], "'=5' is not an option"),
        (["--limit", "5"], "'--limit' is not an option of the form key=value"),
    ],
)
def test_a_typo_names_what_there_is(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(words)
    assert says in str(caught.value)


def test_a_wrong_name_lists_all_that_are_known() -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse(["model=nothing-like-it", "task=vqav2"])
    assert all(name in str(caught.value) for name in config.options("model"))
    assert "model._target_" in str(caught.value)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("limit=0", "limit=0 leaves no sample"),
        ("limit=-3", "limit=-3 leaves no sample"),
        ("limit=few", "limit='few' is not of the right kind: it takes int or null"),
        ("limit=1.5", "limit=1.5 is not"),
        ("limit=true", "limit=True is not"),
        ("limit=", "limit='' is not"),
        ("devices=0", "devices=0: give the number of workers"),
        ("devices=two", "devices=two: give the number of workers"),
        ("max_failed=-1", "max_failed=-1: give a number from 0"),
        ("allow_partial=maybe", "allow_partial='maybe' is not of the right kind: it takes bool"),
        ("engine.image_batch=0", "engine.image_batch=0: give a number from 1"),
        ("engine.loader_threads=x", "engine.loader_threads='x' is not"),
        ("data.check=no-thanks", "data.check='no-thanks' is not"),
        ("decoding.num_beams=many", "decoding.num_beams='many' is not"),
        ("decoding.temperature=hot", "decoding.temperature='hot' is not"),
        ("limit=[", "the command line cannot be read"),
        ("model.seed={", "the command line cannot be read"),
    ],
)
def test_a_value_of_the_wrong_kind_names_the_key(word: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run("model=fake", "task=vqav2", word)
    assert says in str(caught.value)


def test_two_models_without_a_sweep_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"fake,\s*oracle|-m"):
        run("model=fake,oracle", "task=vqav2")


def test_the_last_of_two_values_wins() -> None:
    assert run("model=fake", "task=vqav2", "limit=5", "limit=7").limit == 7


@pytest.mark.parametrize("folder", ["mine", "my configs (1), it's [x]=y"])
def test_a_folder_of_ones_own_adds_models_and_suites(tmp_path: Path, folder: str) -> None:
    extra = tmp_path / folder
    (extra / "model").mkdir(parents=True)
    (extra / "suite").mkdir()
    (extra / "model" / "mine.yaml").write_text("# @package _global_\nmodel: {_target_: a.B, name: mine, depth: 3}\n")
    (extra / "suite" / "two.yaml").write_text("# @package _global_\ntask: [gqa, vqav2]\n")
    got = run("model=mine", "suite=two", extra=extra)
    assert (got.model, got.task) == ({"_target_": "a.B", "name": "mine", "depth": 3}, ("gqa", "vqav2"))
    with pytest.raises(ConfigError, match="no model 'mine'"):
        run("model=mine", "suite=two")


def test_an_unknown_key_in_a_file_of_ones_own_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("# @package _global_\nmodel: {_target_: a.B}\nlimitt: 5\n")
    with pytest.raises(ConfigError, match="no key 'limitt'; did you mean 'limit'"):
        run("model=mine", "task=gqa", extra=tmp_path)


def test_the_keys_are_those_of_the_help() -> None:
    """A key that is added or renamed changes scripts of users: this list is the promise."""
    known = config.keys()
    assert {key for key in known if "." not in key} == {
        "model", "suite", "data", "engine", "task", "prompt", "prompt_style", "question_filter", "extract",
        "metric_variant", "image_size", "k", "limit", "out", "devices", "allow_partial", "max_failed",
    }  # fmt: skip
    decoding = {f"decoding.{field.name}" for field in dataclasses.fields(Decoding)}
    assert decoding == {key for key in known if key.startswith("decoding.")}
    from evalkit.__main__ import HELP

    for key in known:
        assert f"{key}=" in HELP or (key.startswith("decoding.") and "decoding.<field>=" in HELP), key
