"""Execute notebooks; as a script, do so in place.

python tests/notebook_runner.py          # renews the saved outputs of all
python tests/notebook_runner.py 03 05    # of some
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
#: Seconds that one cell may take.
CELL_SECONDS = 240


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook as it is after all its cells ran in ``folder`` with this Python.

    Nothing is kept that changes from run to run (times, versions): a saved notebook changes with its results only.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message holds the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    kernel = client.create_kernel_manager()
    # A kernel that is installed as "python3" may belong to another environment.
    kernel.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    # The kernel runs elsewhere and shall import the medseg of this checkout, and what lies beside the notebooks.
    paths = os.pathsep.join([str(ROOT), str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    # One thread: results on a CPU are bit-exact at one thread count only, and the other tests need their core.
    client.execute(env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"})
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def main() -> None:
    """Execute the notebooks of the repository whose names begin as asked for, and save them with their outputs."""
    os.environ.pop("MEDSEG_DATA", None)  # no picture of a patient is saved
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not path.name.startswith(tuple(sys.argv[1:]) or ""):
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = execute(path, Path(folder))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
