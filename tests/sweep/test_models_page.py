"""The page of the sweep."""

import json

from support.scripts import ROOT, import_from

models_page = import_from("tests/sweep", "models_page")

REPORT = """<testsuites><testsuite timestamp="2026-01-0{day}T12:00:00"><testcase><properties>
<property name="family" value="Bert"/><property name="model" value="BertMaskedLM"/>
<property name="backend" value="{backend}"/></properties>{outcome}</testcase></testsuite></testsuites>"""


def test_reports_are_added_to_the_results(tmp_path):
    results = {"models": {}, "not covered": {}}
    for day, backend, outcome in ((1, "jax", "<failure/>"), (2, "torch", ""), (3, "jax", "")):
        report = tmp_path / f"{day}.xml"
        report.write_text(REPORT.format(day=day, backend=backend, outcome=outcome))
        models_page.update(results, [report])
        if day == 2:
            assert "| Bert | BertMaskedLM | not run | fails | works |" in models_page.render(results)
    page = models_page.render(results)
    assert "| Bert | BertMaskedLM | not run | works | works |" in page
    assert "- JAX: `RDropModel` trains 1 of the 1 models that Keras trains (2026-01-03)." in page


def test_the_page_shows_the_results():
    assert (ROOT / "docs" / "models.md").read_text() == models_page.render(
        json.loads(models_page.RESULTS.read_text())
    ) + "\n"
