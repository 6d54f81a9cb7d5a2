"""The house's rules: who may import whom, what may be imported at all, how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "loopjax"
ROOMS = {"audio", "htsat", "detectors"}
HALL = {
    "atomic_files",
    "store",
    "scores",
    "evaluate",
    "comparison",
    "training",
    "checkpoints",
}  # import no room
MAX_LINES = 400


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_do_not_import_one_another(path):
    room = room_of(path)
    reached = {
        name.split(".")[1] for name in imports(path) if name.startswith("loopjax.") and "." in name
    }
    if room in ROOMS:
        assert not reached & (ROOMS - {room}), f"{path} reaches into another room"
        joiners = {"embedding", "experiment", "trained", "assessment", "commands", "cli", "ladder"}
        assert not reached & joiners, f"{path} imports a joiner"
    if room in HALL:
        assert not reached & ROOMS, f"{path} imports a room"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_audio_never_imports_jax_and_htsat_never_opens_audio(path):
    names = {name.split(".")[0] for name in imports(path)}
    if room_of(path) == "audio":
        assert not names & {"jax", "flax"}
    if room_of(path) == "htsat":
        assert not names & {"soundfile", "soxr"}
    assert "torch" not in names or path.name == "convert.py"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, loopjax, loopjax.cli, loopjax.config\n"
        "heavy = {'jax', 'flax', 'sklearn', 'scipy', 'pyarrow', 'matplotlib', 'rich'}\n"
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
