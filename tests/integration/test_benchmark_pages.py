"""The page of the benchmarks shows the results, and nothing else."""

import json

import pytest
from support.scripts import ROOT, import_from

render = import_from("benchmarks", "render")


def test_the_page_is_rendered_from_the_results():
    assert (ROOT / "docs" / "benchmarks.md").read_text() == render.render()


def test_every_result_has_a_section():
    scripts = {section.script for section in render.SECTIONS}
    assert {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.jsonl")} - scripts == {"settings"}


def record(backend, value, date="2026-01-01", hardware="CPU", command="python benchmarks/loss.py --runs 7"):
    rows = [{"arm": "plain", "time / plain": 1.0}, {"arm": "fused", "time / plain": value}]
    return {"date": date, "command": command, "backend": backend, "hardware": hardware, "rows": rows}


@pytest.fixture
def section():
    return render.Section("What does it cost?", "loss", "Time.", {"R-Drop": 1.25})


def write(folder, *records):
    (folder / "loss.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_the_latest_result_counts_and_a_miss_is_marked(section, tmp_path):
    later = record("jax", 1.30, date="2026-01-02", command="python benchmarks/loss.py")  # --runs changes nothing
    write(tmp_path, record("jax", 1.10), record("tensorflow", 1.25), later)
    page = render.render_section(section, tmp_path)
    assert "| arm | TensorFlow | JAX |" in page
    assert "| R-Drop | 1.25 | 1.30 † |" in page
    assert "Goal: at most 1.25. Measured on 2026-01-01 and 2026-01-02." in page


def test_each_processor_has_a_table(section, tmp_path):
    write(tmp_path, record("jax", 1.1), record("jax", 0.9, hardware="GPU"))
    page = render.render_section(section, tmp_path)
    assert page.count("| arm | JAX |") == 2
    assert "**GPU**, `python benchmarks/loss.py`" in page


def test_a_goal_may_be_the_least(tmp_path):
    write(tmp_path, record("jax", 0.96))
    section = render.Section("How fast is it?", "loss", "Speed.", {"R-Drop": 0.97}, at_least=True)
    page = render.render_section(section, tmp_path)
    assert "| R-Drop | 0.96 † |" in page
    assert "Goal: at least 0.97." in page


def test_a_goal_may_depend_on_the_command():
    section = render.Section("", "step", "", {"R-Drop": {"vit": 1.05}})
    assert render.goal_of(section, "R-Drop", "--network vit-b16") == 1.05
    assert render.goal_of(section, "R-Drop", "--network conv") is None
