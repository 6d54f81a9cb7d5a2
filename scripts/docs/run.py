"""Runs the documentation: what a page shows is what works.

    python -m scripts.docs.run                    # every tutorial, then every notebook
    python -m scripts.docs.run docs/tutorials/own-loops.md

The blocks marked `bash` of a page run one after the other in one shell and one empty directory, as
a reader would type them; blocks marked `{ .bash .norun }` need what a laptop has not. Notebooks are
executed in an empty directory too; what they print is not kept.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TIMEOUT_S = 900


def commands(page: str) -> str:
    """The commands of a page as one script.

    Raises:
        ValueError: the page has none.
    """
    blocks = _BLOCK.findall(page)
    if not blocks:
        raise ValueError("no block of bash to run")
    return "\n".join(blocks)


def run_page(page: Path) -> None:
    """Runs a page's commands in an empty directory.

    Raises:
        subprocess.CalledProcessError: a command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        shell = ["bash", "-euo", "pipefail", "-c", commands(page.read_text())]
        subprocess.run(shell, cwd=folder, check=True, timeout=_TIMEOUT_S)


def run_notebook(path: Path) -> None:
    """Executes a notebook in an empty directory.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=_TIMEOUT_S, resources=resources).execute()


def main() -> int:
    """Runs what was named, or all of it, and says which failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path)
    everything = [*DOCS.glob("tutorials/*.md"), *DOCS.glob("notebooks/*.ipynb")]
    failed = []
    for page in parser.parse_args().pages or sorted(everything):
        start = time.perf_counter()
        try:
            (run_notebook if page.suffix == ".ipynb" else run_page)(page)
        except Exception as error:  # noqa: BLE001  every page is tried
            failed.append(page.name)
            print(f"{page.name}: {error}", file=sys.stderr)
        else:
            print(f"{page.name}: ran in {time.perf_counter() - start:.0f} s")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
