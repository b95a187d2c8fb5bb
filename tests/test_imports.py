"""Imports go one way. The table is the one of CONTRIBUTING.md and of the design; a new module needs a line here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import ROOT, environment, vqa_files

VOCABULARY = "types errors"
DATA = "data formats hub images pickles"
ANYTHING = "anything"

MAY_IMPORT = {
    "types": "",
    "errors": "",
    "disk": "",
    "paths": "",
    "progress": "",
    "metrics": f"{VOCABULARY} metrics",
    "extract": VOCABULARY,
    "prompts": VOCABULARY,
    **dict.fromkeys(DATA.split(), f"{VOCABULARY} {DATA}"),
    "log": f"{VOCABULARY} disk",
    "plan": VOCABULARY,
    "loading": VOCABULARY,
    "models": f"{VOCABULARY} models",
    "demo": f"{VOCABULARY} demo paths",
    "tasks": f"{VOCABULARY} {DATA} extract metrics prompts",
    "manifest": f"{VOCABULARY} disk log __version__",
    "registry": f"{VOCABULARY} extract paths prompts",
    "score": f"{VOCABULARY} extract manifest metrics results",
    "results": f"{VOCABULARY} {DATA} extract manifest",
    "leaderboard": f"{VOCABULARY} manifest prompts",
    "choice": VOCABULARY,
    "run": f"{VOCABULARY} choice loading log plan progress",
    "retrieval": f"{VOCABULARY} disk loading log plan progress run",
    "contracts": f"{VOCABULARY} {DATA} extract prompts",
    "testing": f"{VOCABULARY} {DATA} contracts extract prompts",
    "config": f"{VOCABULARY} paths registry",
    "work": f"{VOCABULARY} config log plan progress retrieval run",
    "assemble": f"{VOCABULARY} {DATA} config extract paths plan prompts registry work",
    "pairs": f"{VOCABULARY} assemble config registry",
    # One process and many: above all of these, below the command line.
    **dict.fromkeys(
        (
            "assemble",
            "crew",
            "launch",
            "pairs",
            "ray_engine",
            "shift",
            "status",
            "supervisor",
            "verbs",
            "worker",
            "__main__",
        ),
        ANYTHING,
    ),
    "__init__": "",
}
"""Module or package of evalkit -> those it may import; `tasks` is the top-level folder. Never one that is not named."""

ONLY_IN = {
    "hydra": {"config", "__main__"},
    "omegaconf": {"config", "__main__"},
    "pandas": {"leaderboard"},
    "datasets": {"hub"},
    "torch": {"models", "demo", "crew"},
    "transformers": {"models", "demo"},
    "tokenizers": {"models", "demo"},
    "safetensors": {"models", "demo"},
    "jpype": {"metrics"},
    "spacy": {"extract"},
    "ray": {"ray_engine", "crew"},
}
"""Heavy packages, and the modules that may use them: inside functions, so that the rest starts fast."""

TRAINING = {"dense", "language_stage", "lessons", "network", "retrieval_stage", "ship", "train", "vision_stage"}
TRAINING |= {"vocabulary"}
"""Modules of `evalkit.demo` that made the bundled model; nothing that evaluates imports them."""


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    """Absolute, `evalkit.metrics.vqa`."""
    names: tuple[str, ...]
    late: bool
    """Inside a function, or for the type checker only."""

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line} imports {self.module} ({', '.join(self.names)})"


def sources() -> list[Path]:
    return sorted([*(ROOT / "evalkit").rglob("*.py"), *(ROOT / "tasks").glob("*.py")])


def imports(file: Path) -> Iterator[Import]:
    """Yield every import of a file, in functions too."""

    def visit(node: ast.AST, late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = late or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            inside = inside or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test))
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(file, child.lineno, alias.name, (), late)
            elif isinstance(child, ast.ImportFrom):
                package = file.relative_to(ROOT).parent.parts
                base = package[: len(package) - child.level + 1] if child.level else ()
                module = ".".join([*base, *filter(None, [child.module])])
                yield Import(file, child.lineno, module, tuple(alias.name for alias in child.names), late)
            else:
                yield from visit(child, inside)

    return visit(ast.parse(file.read_text(encoding="utf-8")), False)


def group(file: Path) -> str:
    """Return the name under which a file stands in the table."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    if parts[0] == "tasks" or parts == ("evalkit", "tasks", "__init__"):
        return "tasks" if parts[0] == "tasks" else "config"  # the shim needs paths alone
    return parts[1]


def targets(found: Import) -> set[str]:
    """Return the modules or packages of evalkit that an import names: `from evalkit import log` names log."""
    if found.module == "evalkit":
        return set(found.names)
    return {found.module.split(".")[1]} if found.module.startswith("evalkit.") else set()


def test_the_table_knows_every_module() -> None:
    assert {group(file) for file in sources()} - set(MAY_IMPORT) == set(), "add the module to MAY_IMPORT"


def test_imports_go_one_way() -> None:
    wrong = []
    for file in sources():
        allowed = MAY_IMPORT[group(file)]
        if allowed == ANYTHING:
            continue
        wrong += [str(found) for found in imports(file) if targets(found) - set(allowed.split())]
    assert wrong == []


def test_tasks_never_import_each_other() -> None:
    families = {path.stem for path in (ROOT / "tasks").glob("*.py")}
    for file in (ROOT / "tasks").glob("*.py"):
        for found in imports(file):
            assert found.module.split(".")[0] not in (families | {"tasks"}), str(found)
            assert not found.module.startswith("evalkit.tasks"), str(found)


def test_heavy_packages_are_used_in_their_places_only() -> None:
    wrong = [
        str(found)
        for file in sources()
        for found in imports(file)
        if found.module.split(".")[0] in ONLY_IN and group(file) not in ONLY_IN[found.module.split(".")[0]]
    ]
    assert wrong == []


def test_heavy_packages_are_imported_where_they_are_needed_not_when_a_module_is() -> None:
    heavy = set(ONLY_IN) | {"PIL", "pycocoevalcap", "huggingface_hub"}
    wrong = [
        str(found)
        for file in sources()
        for found in imports(file)
        if not found.late
        and found.module.split(".")[0] in heavy
        and not (group(file) == "demo" and (file.stem in TRAINING or found.module.split(".")[0] == "PIL"))
    ]
    assert wrong == []


def test_what_evaluates_never_imports_what_trained() -> None:
    wrong = [
        str(found)
        for file in sources()
        if not (group(file) == "demo" and file.stem in TRAINING)
        for found in imports(file)
        if found.module.startswith("evalkit.demo") and TRAINING & {found.module.split(".")[-1], *found.names}
    ]
    assert wrong == []


def test_nobody_imports_anothers_private_names() -> None:
    wrong = [
        str(found)
        for file in sources()
        for found in imports(file)
        if found.module.startswith("evalkit")
        and any(name.startswith("_") and not name.startswith("__") for name in (*found.module.split("."), *found.names))
    ]
    assert wrong == []


def test_the_checker_sees_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evalkit" / "metrics").mkdir(parents=True)
    file = tmp_path / "evalkit" / "metrics" / "bad.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch.nn\n"
        "def f():\n    from ..models.fake import _secret\n    class C:\n        from evalkit import run\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    found = [(each.module, each.names, each.late) for each in imports(file)]
    assert found == [
        ("typing", ("TYPE_CHECKING",), False),
        ("torch.nn", (), True),
        ("evalkit.models.fake", ("_secret",), True),
        ("evalkit", ("run",), True),
    ]
    assert targets(list(imports(file))[2]) == {"models"}
    assert targets(list(imports(file))[3]) == {"run"}


def loaded(code: str, cwd: Path) -> set[str]:
    """Return the top-level packages that are in memory after some code has run in a fresh interpreter."""
    code += "\nimport json, sys; print(); print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment(), text=True, capture_output=True, check=True
    )
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_every_module_of_the_engine_can_be_imported_without_a_heavy_package(tmp_path: Path) -> None:
    modules = [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for file in sources()
        if file.parts[-2] != "tasks" and group(file) != "demo" and file.stem != "__main__"
    ]
    modules += [f"evalkit.tasks.{path.stem}" for path in (ROOT / "tasks").glob("*.py")]
    assert len(modules) > 40
    code = "\n".join(f"import {module}" for module in modules)
    assert loaded(code, tmp_path) & (set(ONLY_IN) | {"PIL", "pycocoevalcap"}) == set()


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["model=fke"],
        ["taskk=vqav2"],
        ["model=fake", "task=vqa2"],
        ["suite=al"],
        ["what"],
        ["decoding.beams=1"],
    ],
    ids=" ".join,
)
def test_help_and_typos_load_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = f"from evalkit.__main__ import main\nassert main({words!r}) == {0 if words == ['--help'] else 2}"
    heavy = set(ONLY_IN) | {"numpy", "PIL", "pycocoevalcap"}
    assert loaded(code, tmp_path) & heavy == set()


def test_scoring_loads_no_torch_and_no_model(tmp_path: Path) -> None:
    root = vqa_files(tmp_path / "root")
    run = f"""
from evalkit.__main__ import main
import glob, sys
assert main(["model=fake", "task=vqav2", "data=files", "data.root={root}", "data.check=false"]) == 0
assert "torch" not in sys.modules, "the fake needs none either"
"""
    loaded(run, tmp_path)
    score = """
from evalkit.__main__ import main
import glob
assert main(["score", *glob.glob("results/runs/*/*/*")]) == 0
assert main(["leaderboard"]) == 0
assert main(["list"]) == 0
"""
    names = loaded(score, tmp_path)
    assert names & {"torch", "transformers", "datasets", "PIL", "jpype", "tokenizers"} == set()
