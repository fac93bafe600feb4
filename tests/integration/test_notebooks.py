"""The notebooks are built from their scripts, and run."""

import re

import nbformat
import pytest
from support.scripts import import_from

notebooks = import_from("docs", "notebooks")
SCRIPTS = sorted(notebooks.FOLDER.glob("*.py"), key=lambda path: path.name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_script_has_the_format_of_keras_io(script):
    """The rules of `scripts/tutobooks.py` in keras.io, which needs triple quotes on lines of their own."""
    date = r"\d{4}/\d\d/\d\d"
    fields = rf"Title: .+\nAuthor: .+\nDate created: {date}\nLast modified: {date}\nDescription: [A-Z].{{,98}}\.\n"
    source = script.read_text()
    assert re.match(rf'"""\n{fields}Accelerator: .+\n"""\n', source)
    assert not re.search(r'^""".*"""$', source, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_is_built_from_its_script(script):
    built = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(built)
    expected = notebooks.convert(script.read_text())
    assert [(cell.cell_type, cell.source) for cell in built.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ]
    code = [cell for cell in built.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_runs(script, tmp_path):
    notebooks.execute(notebooks.convert(script.read_text()), tmp_path)
