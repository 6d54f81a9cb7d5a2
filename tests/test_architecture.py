"""The shape of the house: which wing may import which, what may be imported where, and no circles.

A wing is a folder of `loopjax/`, or a single module beside the folders. Imports are read from the
syntax tree, so those inside functions and under TYPE_CHECKING count like all others.
`python tests/test_architecture.py` prints the floors and the edges.
"""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "loopjax"
MAX_LINES = 400
MAX_FLOORS = 8

# Wing -> the wings it may import. `loopjax` stands for `from loopjax import __version__`.
ALLOWED = {
    "loopjax": "",
    "errors": "",
    "bundled": "errors",
    "restricted_pickle": "",
    "json_files": "",
    "forks": "errors",
    "htsat": "errors",
    "text": "errors",
    "notebook": "",
    "io": "errors bundled",
    "arrays": "errors json_files",
    "audio": "errors bundled json_files io",
    "parallel": "errors bundled",
    "config": "errors bundled",
    "evaluation": "errors bundled json_files notebook",
    "store": "errors json_files io restricted_pickle notebook",
    "hub": "errors json_files io store loopjax",
    "training": "errors json_files io",
    "encoders": "errors forks json_files bundled io arrays htsat text notebook",
    "detectors": "errors forks json_files arrays io training evaluation",
    "embedding": "errors io config parallel audio store encoders",
    "finetuning": "errors config parallel audio htsat training encoders embedding",
    "convert": "errors json_files io htsat text encoders detectors restricted_pickle hub",
    "model": "errors io config store encoders detectors embedding evaluation notebook",
    "library": "errors json_files io config audio store encoders embedding evaluation",
    "explanation": "errors htsat store encoders embedding model",
    "doctor": "errors parallel encoders loopjax",
    "report": "errors json_files io config audio store evaluation loopjax",
    "serve": "errors io audio embedding encoders evaluation library model report store",
}
ALLOWED["experiment"] = " ".join(ALLOWED)  # everything above
ALLOWED["cli"] = " ".join(ALLOWED)
ALLOWED["__main__"] = "cli"

# Other people's packages: wing -> what it must not import, anywhere in its files.
FOREIGN = {
    "audio": {"jax", "flax", "optax", "orbax"},
    "htsat": {"soundfile", "soxr", "pyarrow"},
}
NOWHERE = {"torch", "tests", "scripts"}

NAMED = re.compile(r"loopjax(\.\w+)+(:\w+)?")  # a module or a name in one, as text
IMPORTING = {"import_module", "__import__", "resolve_name"}


@dataclass
class House:
    """Every module of the package and what each one imports."""

    package: Path
    files: dict[str, Path] = field(default_factory=dict)  # module name -> file
    edges: set[tuple[str, str]] = field(default_factory=set)  # between modules of the package
    foreign: set[tuple[str, str]] = field(default_factory=set)  # module -> top-level package
    unreadable: list[str] = field(default_factory=list)  # imports whose target is no literal

    def __post_init__(self):
        for path in sorted(self.package.rglob("*.py")):
            parts = path.relative_to(self.package.parent).with_suffix("").parts
            self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        for module, path in self.files.items():
            for target in self._targets(module, path):
                if target.split(".")[0] == "loopjax":
                    self.edges.add((module, self._home(target)))
                else:
                    self.foreign.add((module, target.split(".")[0]))

    def _targets(self, module: str, path: Path) -> list[str]:
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    above = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*above, base]).rstrip(".")
                found += [f"{base}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Constant) and NAMED.fullmatch(str(node.value)):
                found.append(str(node.value).partition(":")[0])  # for an import by a call
            elif isinstance(node, ast.Call) and _hides_its_target(node):
                self.unreadable.append(f"{module} imports what only shows at run time")
        return found

    def _home(self, target: str) -> str:
        """The module that `target`, a module or a name in one, comes from."""
        if target == "loopjax.__version__":
            return "loopjax"
        home = target
        while home not in self.files and "." in home:
            home = home.rpartition(".")[0]
        # A public name, or the package itself: whoever asks for it gets everything.
        return "loopjax.<public name>" if home == "loopjax" else home

    def wing_edges(self) -> dict[tuple[str, str], list[str]]:
        """(wing, imported wing) -> the imports behind it."""
        found: dict[tuple[str, str], list[str]] = {}
        for module, target in sorted(self.edges):
            edge = (wing(module), wing(target))
            if edge[0] != edge[1]:
                found.setdefault(edge, []).append(f"{module} -> {target}")
        return found

    def floors(self) -> list[list[str]]:
        """Wings by the longest way down to one that imports nothing."""
        below: dict[str, set[str]] = {wing(module): set() for module in self.files}
        for importer, imported in self.wing_edges():
            below[importer].add(imported)
        floors = []
        while below:
            floor = sorted(name for name, needs in below.items() if not needs & set(below))
            if not floor:
                raise ValueError(f"wings import one another in a circle: {', '.join(below)}")
            floors.append(floor)
            below = {name: needs for name, needs in below.items() if name not in floor}
        return floors

    def circles(self) -> list[set[str]]:
        """Sets of modules that import one another."""
        reach: dict[str, set[str]] = {module: set() for module in self.files}
        for module, target in self.edges:
            if target in reach:
                reach[module].add(target)
        for through in reach:
            for module in reach:
                if through in reach[module]:
                    reach[module] |= reach[through]
        found: list[set[str]] = []
        for module in reach:
            circle = {other for other in reach[module] if module in reach[other]}
            if circle and circle not in found:
                found.append(circle)
        return found

    def faults(self) -> list[str]:
        """Every breach of the rules above, as a sentence."""
        found = list(self.unreadable)
        for module in self.files:
            if wing(module) not in ALLOWED:
                found.append(f"{module} belongs to no wing of the table")
        for edge, imports in self.wing_edges().items():
            if edge[1] not in ALLOWED.get(edge[0], "").split():
                found += [f"{edge[0]} may not import {edge[1]}: {text}" for text in imports]
        for module, package in sorted(self.foreign):
            if package in FOREIGN.get(wing(module), set()) | NOWHERE:
                found.append(f"{module} may not import {package}")
        for circle in self.circles():
            found.append(f"a circle of imports: {', '.join(sorted(circle))}")
        return found


def wing(module: str) -> str:
    """The wing of a module: `loopjax.store.read` -> `store`; the package itself is `loopjax`."""
    return module.split(".")[1] if "." in module else module


def _hides_its_target(call: ast.Call) -> bool:
    """Whether a call imports by neither a literal nor an entry of a table of literals."""
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    return name in IMPORTING and not isinstance(call.args[0], ast.Constant | ast.Subscript)


def report(house: House) -> str:
    """Floors and edges, as text."""
    floors = house.floors()
    lines = [f"{number}: {'  '.join(floor)}" for number, floor in reversed(list(enumerate(floors)))]
    for importer in sorted({wing(module) for module in house.files}):
        imported = sorted(target for source, target in house.wing_edges() if source == importer)
        lines.append(f"{importer} -> {' '.join(imported) or 'nothing'}")
    return "\n".join(lines)


def test_every_import_is_in_the_table():
    assert House(PACKAGE).faults() == []


def test_the_table_names_no_wing_that_is_gone():
    wings = {wing(module) for module in House(PACKAGE).files}
    assert set(ALLOWED) == wings
    assert {name for allowed in ALLOWED.values() for name in allowed.split()} <= wings


def test_the_documentation_shows_the_table():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `")]
    shown = {row[1].strip(" `"): row[3].strip() for row in rows}
    assert shown.pop("experiment") == shown.pop("cli") == "everything above"
    elsewhere = {"loopjax", "experiment", "cli", "__main__"}
    assert shown == {name: ALLOWED[name] for name in ALLOWED if name not in elsewhere}


def test_the_house_has_few_floors():
    house = House(PACKAGE)
    print(report(house))
    assert len(house.floors()) <= MAX_FLOORS


# file, line added, words of the sentence that must follow
PLANTED = {
    "top of a file": (
        "audio/decode.py",
        "from loopjax.htsat.frontend import LogMelConfig",
        "audio may not import htsat",
    ),
    "late, in a function": (
        "htsat/model.py",
        "def planted():\n    from loopjax.store import read\n    return read",
        "htsat may not import store",
    ),
    "for types only": (
        "detectors/knn.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import loopjax.embedding.chain",
        "detectors may not import embedding",
    ),
    "relative": (
        "store/read.py",
        "from ..embedding import chain",
        "store may not import embedding",
    ),
    "the package's own name": (
        "training/loop.py",
        "from loopjax import evaluation",
        "training may not import evaluation",
    ),
    "a public name": (
        "embedding/chain.py",
        "from loopjax import DeepSVDD",
        "embedding may not import <public name>",
    ),
    "by a call": (
        "evaluation/metrics.py",
        "import importlib\nimportlib.import_module('loopjax.cli')",
        "evaluation may not import cli",
    ),
    "by a call that hides its target": (
        "report/page.py",
        "import importlib\nimportlib.import_module('loopjax.' + 'cli')",
        "report.page imports what only shows at run time",
    ),
    "by a table of names": (
        "experiment/record.py",
        "import pkgutil\nHOME = {'a': 'loopjax.cli:main'}\npkgutil.resolve_name(HOME['a'])",
        "experiment may not import cli",
    ),
    "nothing imports the command line": (
        "experiment/run.py",
        "from loopjax.cli import main",
        "experiment may not import cli",
    ),
    "a module that nobody listed": ("shed.py", "import json", "shed belongs to no wing"),
    "a circle inside a wing": (
        "errors.py",
        "def planted():\n    import loopjax.errors",
        "a circle of imports: loopjax.errors",
    ),
    "a circle between modules": (
        "audio/mixdown.py",
        "from loopjax.audio import decode",
        "a circle of imports: loopjax.audio.decode, loopjax.audio.mixdown",
    ),
    "jax where samples are read": ("audio/process.py", "import jax.numpy as jnp", "not import jax"),
    "torch": ("convert/mapping.py", "import torch", "may not import torch"),
    "a test's helper": ("encoders/load.py", "from tests import x", "may not import tests"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_import_is_refused(name, tmp_path):
    file, line, sentence = PLANTED[name]
    copy = tmp_path / "loopjax"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("data", "__pycache__", "assets"))
    before = set(House(copy).faults())
    text = (copy / file).read_text(encoding="utf-8") if (copy / file).exists() else ""
    (copy / file).write_text(f"{text}\n{line}\n", encoding="utf-8")
    new = [fault for fault in House(copy).faults() if fault not in before]
    assert any(sentence in fault for fault in new)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, loopjax, loopjax.cli, loopjax.config\n"
        "heavy = {'jax', 'flax', 'numpy', 'sklearn', 'scipy', 'pyarrow', 'matplotlib', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_public_names_resolve():
    import loopjax

    for name in loopjax.__all__:
        assert getattr(loopjax, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = loopjax.no_such_name


if __name__ == "__main__":
    print(report(House(PACKAGE)))
