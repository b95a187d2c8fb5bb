"""Equal to the official code, case by case: every block of every golden file is a test.

    pytest tests/test_golden.py                          the files of tests/golden
    EVALKIT_GOLDEN=DIR pytest tests/test_golden.py       those of DIR instead

A file or a block that nothing here knows fails. Blocks that need Java or CoreNLP skip where they are not to be had; the
folder with CoreNLP is EVALKIT_CORENLP.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.golden_blocks import FILES
from tests.golden_compare import DESCRIBING, Doc, GoldenFile

OWN = Path(__file__).parent / "golden"
FOLDER = Path(os.environ.get("EVALKIT_GOLDEN", OWN))


def known(path: Path) -> GoldenFile | None:
    """Return what is known of a file: by its name, which may go on after a dot, hyphen or underscore."""
    names = [name for name in FILES if path.suffix == ".json" and re.fullmatch(rf"{name}([._-].*)?", path.stem)]
    return FILES[max(names, key=len)] if names else None


def load(path: Path) -> Doc:
    doc = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(doc, dict), f"{path.name} holds no object"
    return doc


def keys_of(block: str) -> list[str]:
    """Return the keys of a block; what stands after a space is the metric it is about."""
    return block.partition(" ")[0].split(".")


def at(doc: Doc, block: str) -> Any:
    """Return a block by its dotted key; KeyError where the file has no such block."""
    found: Any = doc
    for key in keys_of(block):
        found = found[key]
    return found


def has(doc: Doc, block: str) -> bool:
    try:
        at(doc, block)
    except KeyError:
        return False
    return True


def blocks(path: Path) -> list[str]:
    """Return the blocks of a file, unknown ones too; for a file that nobody knows, one that will fail."""
    golden = known(path)
    if golden is None:
        return ["unknown file"]
    doc = load(path)
    found = [block for block in golden.blocks if has(doc, block)]
    claimed = {keys_of(block)[0] for block in golden.blocks}
    found += [key for key in doc if key not in claimed | golden.inputs | DESCRIBING]
    dotted = [keys_of(block) for block in golden.blocks if "." in block]
    for parent in sorted({keys[0] for keys in dotted} & doc.keys()):
        listed = {keys[1] for keys in dotted if keys[0] == parent}
        found += [f"{parent}.{key}" for key in doc[parent] if key not in listed | golden.inputs]
    return found or ["no block"]


def mismatches(path: Path, block: str) -> Iterator[str]:
    """Yield the expectations of a block that do not hold."""
    golden = known(path)
    if golden is None:
        yield f"{path.name} is a golden file that no test knows; the known ones: {', '.join(sorted(FILES))}"
    elif block not in golden.blocks:
        yield f"{path.name}: the block {block!r} is one that no test knows, or the file has none"
    else:
        yield from golden.blocks[block](load(path))


def files() -> list[Path]:
    return sorted(path for path in FOLDER.iterdir() if path.is_file() and path.name != "README.md")


def parameters(paths: list[Path], slow: bool) -> list[Any]:
    """Return a parameter set a block; those that need Java are marked, and slow where they run several times."""
    found = []
    for path in paths:
        for block in blocks(path):
            needs_java = " " in block or path.stem.startswith("spice")
            marks = [pytest.mark.java, *([pytest.mark.slow] if slow else [])] if needs_java else []
            found.append(pytest.param(path, block, id=f"{path.name}-{block}", marks=marks))
    return found


@pytest.mark.parametrize(("path", "block"), parameters(files(), slow=False))
def test_every_case_equals_the_official_code(path: Path, block: str) -> None:
    found = list(mismatches(path, block))
    assert not found, f"{len(found)} differences, such as:\n" + "\n".join(found[:20])


def test_there_are_golden_files() -> None:
    assert files(), f"no golden file in {FOLDER}"


# That the tests above can fail


def expectations(golden: GoldenFile, doc: Doc, block: str) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of the single values that a block expects."""
    metrics = {each.partition(" ")[2] for each in golden.blocks if " " in each and keys_of(each) == keys_of(block)}
    about = block.partition(" ")[2]
    for path in all_expectations(golden, doc, block):
        if about in path if about else not metrics & set(path):
            yield path


def all_expectations(golden: GoldenFile, doc: Doc, block: str) -> Iterator[tuple[Any, ...]]:
    root = tuple(keys_of(block))
    value = at(doc, block)
    if isinstance(value, list) and value and isinstance(value[0], dict):  # cases
        for i, case in enumerate(value):
            for key in sorted(golden.expectations & case.keys()):
                yield from leaves(case[key], (*root, i, key))
    elif block == "tasks":  # MME: rows by task
        for task, rows in value.items():
            for i, row in enumerate(rows):
                yield from leaves(row["expected_label"], (*root, task, i, "expected_label"))
    elif isinstance(value, dict) and golden.expectations & value.keys():
        for key in sorted(golden.expectations & value.keys()):
            yield from leaves(value[key], (*root, key))
    else:
        yield from leaves(value, root)


def leaves(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, (*path, key))
    elif isinstance(value, list):
        for i, each in enumerate(value):
            yield from leaves(each, (*path, i))
    else:
        yield path


def altered(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + max(0.02, 0.02 * abs(value))
    return 0.25 if value is None else f"{value}x"


def with_one_changed(doc: Doc, path: tuple[Any, ...]) -> Doc:
    changed = copy.deepcopy(doc)
    parent: Any = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = altered(parent[path[-1]])
    return changed


@pytest.mark.parametrize(("path", "block"), parameters(sorted(OWN.glob("*.json")), slow=True))
def test_one_changed_expectation_is_noticed(path: Path, block: str, tmp_path: Path) -> None:
    golden = known(path)
    assert golden is not None
    doc = load(path)
    rng = random.Random(0)
    kinds: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for each in expectations(golden, doc, block):
        if "expected_python3_conversion" not in each:
            kinds.setdefault(tuple(str(key) for key in each if not isinstance(key, int)), []).append(each)
    assert kinds, "this block expects nothing"
    chosen = [rng.choice(paths) for paths in rng.sample(list(kinds.values()), min(golden.mutations, len(kinds)))]
    copy_of_file = tmp_path / path.name
    for each in chosen:
        copy_of_file.write_text(json.dumps(with_one_changed(doc, each)), encoding="utf-8")
        assert next(mismatches(copy_of_file, block), None), f"nothing noticed that {each} was changed"


def run_on(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "--no-header",
        f"{__file__}::test_every_case_equals_the_official_code",
    ]
    environment = os.environ | {"EVALKIT_GOLDEN": str(folder)}
    return subprocess.run(
        command, env=environment, cwd=OWN.parents[1], capture_output=True, text=True, timeout=120, check=False
    )


def test_another_folder_is_run_instead_and_fails_where_one_expectation_is_wrong(tmp_path: Path) -> None:
    doc = load(OWN / "anls.json")
    (tmp_path / "anls.json").write_text(json.dumps(doc), encoding="utf-8")
    assert run_on(tmp_path).returncode == 0
    changed = with_one_changed(doc, next(expectations(FILES["anls"], doc, "cases")))
    (tmp_path / "anls.json").write_text(json.dumps(changed), encoding="utf-8")
    result = run_on(tmp_path)
    assert result.returncode == 1
    assert "1 failed" in result.stdout


def test_a_file_or_block_that_nobody_knows_fails(tmp_path: Path) -> None:
    (tmp_path / "perplexity.json").write_text('{"metric": "perplexity", "cases": []}', encoding="utf-8")
    doc = load(OWN / "anls.json") | {"more_cases": []}
    (tmp_path / "anls.json").write_text(json.dumps(doc), encoding="utf-8")
    result = run_on(tmp_path)
    assert result.returncode == 1
    assert "2 failed" in result.stdout
    assert "perplexity.json is a golden file that no test knows" in result.stdout
