"""The values of the chart, and what is generated from them."""

import re
import tomllib

import chart_pages
import yaml
from rendered import CHART, ROOT


def test_the_readmes_table_and_the_schema_match_the_values() -> None:
    told = "to regenerate them, run: python tests/deploy/chart_pages.py"
    assert (CHART / "README.md").read_text() == chart_pages.readme(), told
    assert (CHART / "values.schema.json").read_text() == chart_pages.schema(), told


def test_every_value_is_described_and_used() -> None:
    comments = dict(chart_pages.described())
    for path in comments:
        if any(other.startswith(f"{path}.") for other in comments):
            continue
        above = [path[:end] for end in range(len(path) + 1) if path[end : end + 1] in ("", ".")]
        assert any(comments[each] for each in above), f"{path} has no comment in values.yaml"
    used = "".join(path.read_text() for path in CHART.glob("templates/*"))
    for path, _, _ in chart_pages.rows():
        # Those below settings, config and adapters are passed on, whatever their names.
        known = path.startswith(("settings.", "config.", "adapters."))
        assert known or path.rpartition(".")[2] in used, f"{path} is not used"


def test_the_chart_is_for_a_version_of_the_service_that_exists() -> None:
    # Only a tag says which one exactly: `make release-check` compares them.
    of = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    first = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert of == first["fallback-version"] or re.search(rf"^## \[?{re.escape(of)}\b", changelog, re.M)
