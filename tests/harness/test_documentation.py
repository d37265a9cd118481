"""The examples of docs/testing.md do what they say."""

import re
from pathlib import Path

import pytest
from hypothesis import settings

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=[example.split("import ")[1].split()[0] for example in EXAMPLES])
def test_an_example_runs(example):
    names = {"__name__": "example"}
    exec(compile(example, str(PAGE), "exec"), names)
    for name, value in names.items():
        if name.startswith("test_"):
            value()
        elif name == "TestMyBackend":
            suite = value()
            for test in [attribute for attribute in dir(suite) if attribute.startswith("test_")]:
                getattr(suite, test)()
        elif name == "TestMyCheckpoint":
            value.settings = settings(max_examples=3, stateful_step_count=6, deadline=None)
            value("runTest").runTest()


def test_the_page_has_examples_of_everything():
    assert len(EXAMPLES) == 6
