"""Sentences from the docstrings of the standard library."""

import textwrap
from pathlib import Path

import pytest

from qcore import DatasetError
from qcore_zoo.sentences import MODULES, docstring_sentences, first_sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One sentence. Another.", "One sentence."),
        ("Over\n    two lines.  Another.\n\nMore.", "Over two lines."),
        ("No end", "No end"),
        ("Version 3.11 is e.g. an end. No.", "Version 3.11 is e.g. an end."),
        ("Is it?  Yes!", "Is it?"),
        ("\n\n  Later.\n\nMore.", "Later."),
        ("", ""),
    ],
)
def test_the_first_sentence(text: str, sentence: str) -> None:
    """It ends where another begins, or with its paragraph; lines are joined."""
    assert first_sentence(text) == sentence


def test_the_standard_library_gives_thousands_of_sentences() -> None:
    """Long lists, the same each time, without a sentence that stands twice."""
    calibration, test = docstring_sentences()
    assert len(calibration) > 500
    assert len(test) > 1500
    every = [*calibration, *test]
    assert len(set(every)) == len(every)
    assert all(5 <= len(sentence.split()) <= 40 for sentence in every)
    assert docstring_sentences() == (calibration, test)
    assert len(set(MODULES)) == len(MODULES)


def test_what_counts_as_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docstrings of modules, classes and functions in the order of the source; no signatures, no
    prompts, nothing short; the module does not run."""
    source = '''
        """What the whole module is about. And more."""

        raise RuntimeError("imported")

        class A:
            """A class that has something to say."""

            def method(self):
                """Too short."""

            async def wait(self):
                """Wait until there is something to do."""

        def call():
            """call(x, y) -> a signature and not a sentence"""

        def example():
            """See this example of it: >>> example() and so on"""
        '''
    (tmp_path / "documented_module.py").write_text(textwrap.dedent(source))
    monkeypatch.syspath_prepend(tmp_path)
    calibration, test = docstring_sentences(["documented_module"])
    assert calibration == ["What the whole module is about."]
    assert test == [
        "A class that has something to say.",
        "Wait until there is something to do.",
    ]


def test_modules_that_are_not_there_are_left_out() -> None:
    """A name that this Python lacks, or that has no source, brings nothing; nothing at all is an
    error."""
    assert docstring_sentences(["queue", "no_such_module", "no_such.part", "math"]) == (
        docstring_sentences(["queue"])
    )
    with pytest.raises(DatasetError, match="none of the modules has a docstring"):
        docstring_sentences(["no_such_module"])
