"""The pages of the benchmarks and of the examples show the results, and nothing else."""

import json

import pytest
from support.scripts import ROOT, import_from

examples, render = (import_from("benchmarks", name) for name in ("examples", "render"))


def test_the_page_is_rendered_from_the_results():
    assert (ROOT / "docs" / "benchmarks.md").read_text() == render.render()


def test_the_page_of_the_examples_is_rendered_from_the_results():
    assert (ROOT / "docs" / "examples.md").read_text() == examples.render()


def test_a_report_is_added_to_the_results(tmp_path):
    run, results = tmp_path / "translation-torch", tmp_path / "results"
    run.mkdir()
    results.mkdir()
    arms = [{"arm": "plain", "BLEU": 18.418, "seconds": 485.6}, {"arm": "R-Drop", "BLEU": 20.39, "seconds": 850.0}]
    report = {
        "settings": {},
        "backend": "torch",
        "versions": {"keras": "3.15.1"},
        "peak_memory_gb": 2.25,
        "results": arms,
    }
    (run / "report.json").write_text(json.dumps(report))
    (run / "learning_curves.png").write_bytes(b"picture")
    examples.add(run / "report.json", results, tmp_path)
    record = json.loads((results / "translation-torch.json").read_text())
    assert "settings" not in record
    cells = ["`translation.py`", "PyTorch", "BLEU", "18.42", "20.39", "486", "850", "2.2"]
    assert examples.row_of("translation", record) == cells
    assert (tmp_path / "example-translation.png").read_bytes() == b"picture"


def test_every_result_has_a_section():
    scripts = {section.script for section in render.SECTIONS}
    assert {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.jsonl")} - scripts == {"settings"}


def record(backend, value, date="2026-01-01", hardware="CPU", command="python benchmarks/loss.py --runs 7"):
    rows = [{"arm": "plain", "time / plain": 1.0}, {"arm": "R-Drop", "time / plain": value}]
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


@pytest.mark.parametrize(
    ("better", "sentence"),
    [("higher", "Better: alpha 1. Worse: alpha 2; alpha 3."), ("lower", "Better: alpha 2; alpha 3. Worse: alpha 1.")],
)
def test_arms_whose_interval_excludes_0_are_better_or_worse(better, sentence, tmp_path):
    intervals = [("alpha 0", 0.0, 0.0), ("alpha 1", 0.1, 0.3), ("alpha 2", -0.3, -0.1), ("alpha 3", -3.0, -1.0)]
    intervals.append(("alpha 4", -0.1, 0.1))
    results = record("jax", 1.0)
    results["rows"] = [{"arm": arm, "low": low, "high": high, "NLL": 1.0} for arm, low, high in intervals]
    write(tmp_path, results)
    section = render.Section("Does it help?", "loss", "NLL.", columns=("NLL", "low", "high"), better=better)
    assert f"{sentence} Measured on 2026-01-01." in render.render_section(section, tmp_path)
    results["rows"] = results["rows"][:1]
    write(tmp_path, results)
    assert "Better: no arm. Worse: no arm." in render.render_section(section, tmp_path)


@pytest.mark.parametrize("title", ["Does it help CTC?", "Does it help fine-tuning with LoRA?"])
def test_no_alpha_helps_as_the_guides_say(title):
    """`docs/beyond.md` and `docs/guides.md` say that no alpha was better."""
    section = (ROOT / "docs/benchmarks.md").read_text().split(f"## {title}\n")[1]
    better = section.split("Better: ")[1].split(". Worse: ")[0]
    assert "alpha" not in better
