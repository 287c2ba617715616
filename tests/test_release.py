"""What a release says of itself agrees. Oracles: the version of the package, a YAML parser."""

import pathlib
import re

import pytest
import yaml

import bsq_jax

ROOT = pathlib.Path(__file__).parents[1]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_and_the_changelog_name_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == bsq_jax.__version__
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == "Apache-2.0"
    assert citation["preferred-citation"]["title"] in (ROOT / "README.md").read_text("utf-8")
    (newest, *_) = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest == bsq_jax.__version__


def test_the_workflow_runs_the_gate():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == "bash .ci/run"
    assert job["timeout-minutes"] == 90


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_of_issues(path):
    """As GitHub's syntax of issue forms has it: names, kinds and labels; every id is there once."""
    form = yaml.safe_load(path.read_text("utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    assert {part["type"] for part in form["body"]} <= {"markdown", "textarea", "input", "dropdown"}
    ids = [part["id"] for part in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(part["attributes"]["label"] for part in form["body"])


def test_links_of_the_pages_for_contributors():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    named = re.findall(r"`(bsq_jax/[\w/.]+)`", text)
    assert len(links) > 5
    assert [path for path in [*links, *named] if not (ROOT / path).exists()] == []
