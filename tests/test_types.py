"""What a type checker tells the users of `loopjax`: real signatures, and mistakes as errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import loopjax

ROOT = Path(__file__).parent.parent

# Line -> what pyright must answer; "" = nothing.
ANSWERS = {
    "loopjax.DeepSVDD(netwrok=1)": 'No parameter named "netwrok"',
    "loopjax.no_such": '"no_such" is not a known attribute of module "loopjax"',
    "loopjax.read_embeddings(3)": 'cannot be assigned to parameter "path"',
    "loopjax.read_embeddings('x').matrxi": 'Cannot access attribute "matrxi"',
    "loopjax.load_encoder('loopjax-nano', precision='fp64')": 'parameter "precision"',
    "loopjax.KNN(n_neighbors=10).fit([[0.0]])": "",
    "code: int = loopjax.UserError('x').exit_code": "",
}


def pyright(file: Path) -> list[dict]:
    """Pyright's diagnostics of one file that uses the package."""
    (file.parent / "pyrightconfig.json").write_text(
        json.dumps({"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]})
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pyright",
            "--outputjson",
            "--pythonpath",
            sys.executable,
            file.name,
        ],
        capture_output=True,
        text=True,
        cwd=file.parent,
    )
    return json.loads(done.stdout)["generalDiagnostics"]


@pytest.fixture(scope="module")
def diagnostics(tmp_path_factory):
    """Line -> messages, of a file with every line of ANSWERS and `reveal_type` of every name."""
    pytest.importorskip("pyright")
    lines = ["import loopjax", *ANSWERS, *(f"reveal_type(loopjax.{n})" for n in loopjax.__all__)]
    file = tmp_path_factory.mktemp("types") / "user.py"
    file.write_text("\n".join(lines) + "\n")
    found: dict[str, list[str]] = {line: [] for line in lines}
    for diagnostic in pyright(file):
        found[lines[diagnostic["range"]["start"]["line"]]].append(diagnostic["message"])
    return found


@pytest.mark.parametrize("line", ANSWERS)
def test_a_users_line_gets_the_right_answer(line, diagnostics):
    messages = " ".join(diagnostics[line])
    assert ANSWERS[line] in messages if ANSWERS[line] else messages == ""


@pytest.mark.parametrize("name", loopjax.__all__)
def test_every_public_name_has_a_type(name, diagnostics):
    (message,) = diagnostics[f"reveal_type(loopjax.{name})"]
    kind = message.partition(" is ")[2].strip('"')
    assert kind.startswith(("type[", "(", "Overload["))
    assert "Unknown" not in kind
