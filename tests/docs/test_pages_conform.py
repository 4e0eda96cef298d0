"""The plug-ins on the pages keep every contract of their kinds, as the pages say."""

import re

import pytest

import qcore
from qcore.testing import check_plugin

GUIDES = ("index", "observer", "fake-quant", "fusion", "converter", "backend", "algorithm")


@pytest.mark.slow
@pytest.mark.parametrize("name", GUIDES)
def test_the_plugin_of_the_page_conforms(page_named, installed_from, name):
    """``pytest --qcore-conformance acme`` is green for what the page shows."""
    page = page_named(f"docs/plugins/{name}.md")
    (plugin,) = installed_from(page)
    outcomes = check_plugin(qcore.PluginHost(allow=None), plugin)
    assert not [(o.contract, o.message) for o in outcomes if not o.ok]
    assert any(outcome.status == "passed" for outcome in outcomes)


@pytest.mark.parametrize("name", [name for name in GUIDES if name != "index"])
def test_the_page_shows_how_to_check(page_named, installed_from, name):
    """Each page has the command, and a test file with every contribution that has contracts."""
    page = page_named(f"docs/plugins/{name}.md")
    (plugin,) = installed_from(page)
    console = "".join(block.text for block in page.blocks if block.language == "console")
    assert f"$ python -m pytest --qcore-conformance {plugin}\n" in console
    (test,) = (block for block in page.blocks if block.title == "tests/test_conformance.py")
    subjects = set(re.findall(r'subject = "(.+)"', test.text))
    (info,) = (i for i in qcore.PluginHost().plugins() if i.plugin == plugin)
    kinds = {spec.kind for spec in info.contributions} & {name.replace("-", "_")}
    assert subjects == {f"{plugin}:{s.name}" for s in info.contributions if s.kind in kinds}
