"""Every fault of the catalogue has a test that exists, or a reason why not."""

import ast
from pathlib import Path

from tests.faults.catalogue import CATALOGUE

TESTS = Path(__file__).parents[1]


def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_number_has_tests_that_exist_or_a_reason():
    assert sorted(CATALOGUE) == list(range(1, 58))
    for number, entry in CATALOGUE.items():
        assert entry.tests or entry.reason, number
        for test in entry.tests:
            file, _, name = test.partition("::")
            assert name in functions(file), f"{number}: {test}"


def test_most_faults_are_injected():
    assert sum(bool(entry.tests) for entry in CATALOGUE.values()) >= 45


def test_every_numbered_test_is_in_the_catalogue():
    listed = {test for entry in CATALOGUE.values() for test in entry.tests}
    for path in (TESTS / "faults").glob("test_*.py"):
        numbered = {name for name in functions(f"faults/{path.name}") if name[5:7].isdigit()}
        assert {f"faults/{path.name}::{name}" for name in numbered} <= listed
