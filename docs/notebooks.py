"""The notebooks: `make notebooks` builds them from scripts, and mkdocs shows them as pages.

The scripts in `examples/notebooks/` have the format of keras.io: a header with the title, then code, and text in
triple-quoted strings between the code. The built notebooks next to them hold the outputs.
"""

import re
import tempfile
from pathlib import Path

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"


def convert(script: str) -> nbformat.NotebookNode:
    """Converts a script in the format of keras.io to a notebook without outputs."""
    _, header, *parts = re.split(r'^"""\n', script, flags=re.MULTILINE)
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    lines = [f"**{name}:** {value}" for name, value in fields.items() if name not in ("Title", "Accelerator")]
    cells = [nbformat.v4.new_markdown_cell(f"# {fields['Title']}\n\n" + "<br>\n".join(lines))]
    for index, part in enumerate(parts):
        if part.strip():
            new_cell = nbformat.v4.new_markdown_cell if index % 2 else nbformat.v4.new_code_cell
            cells.append(new_cell(part.strip()))
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index}"  # random by default, which would change the file with each build
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def execute(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Runs the cells in a folder, where they write their files, and adds the outputs to the notebook."""
    NotebookClient(
        notebook,
        timeout=3600,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # warnings are about the machine that builds the notebook
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the notebooks to the site. This is a hook of mkdocs."""
    for path in FOLDER.glob("*.ipynb"):
        resources = {"unique_key": path.stem, "output_files_dir": path.stem}
        page, resources = MarkdownExporter().from_filename(path, resources)
        page = f"{page.replace('](../../docs/', '](../')}\n[Download this notebook]({path.name})\n"
        page = re.sub(r"!\[png\]\((\S+)\)", r"[![Output of the code above](\1)](\1)", page)  # a click enlarges it
        contents = {f"{path.stem}.md": page, path.name: path.read_text(), **resources["outputs"]}
        for name, content in contents.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Points the links to notebooks, which work on a code host, to their pages. This is a hook of mkdocs."""
    return re.sub(r"\]\(\.\./examples/notebooks/(\w+)\.ipynb\)", r"](notebooks/\1.md)", markdown)


def main():
    for path in FOLDER.glob("*.py"):
        notebook = convert(path.read_text())
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder)
        nbformat.write(notebook, path.with_suffix(".ipynb"))


if __name__ == "__main__":
    main()
