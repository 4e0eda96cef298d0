"""Real sentences without a download: what the standard library says about itself.

The first sentence of each docstring in a fixed list of modules, in the order of the source. They
are read from the source files; the modules do not run. The list is the same wherever one version of
Python is installed; another version may word some of them differently.
"""

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from qcore import DatasetError

__all__ = ["MODULES", "docstring_sentences", "first_sentence"]

MODULES = (
    *("_pydecimal", "argparse", "ast", "asyncio.events", "base64", "bdb", "calendar", "cmd"),
    *("codecs", "collections", "concurrent.futures._base", "configparser", "contextlib", "copy"),
    *("csv", "dataclasses", "difflib", "doctest", "email.message", "enum", "fractions", "ftplib"),
    *("functools", "glob", "gzip", "heapq", "http.client", "http.cookiejar", "imaplib", "inspect"),
    *("ipaddress", "json.decoder", "logging", "logging.handlers", "mailbox", "mimetypes"),
    *("multiprocessing.pool", "ntpath", "operator", "pathlib", "pickle", "platform", "poplib"),
    *("posixpath", "pprint", "pydoc", "queue", "random", "sched", "selectors", "shelve", "shutil"),
    *("smtplib", "socket", "socketserver", "ssl", "statistics", "string", "subprocess", "symtable"),
    *("tarfile", "tempfile", "textwrap", "threading", "timeit", "tkinter", "trace", "traceback"),
    *("turtle", "types", "typing", "unittest.case", "unittest.mock", "urllib.parse"),
    *("urllib.request", "uuid", "warnings", "weakref", "xml.dom.minidom", "xml.sax.handler"),
    *("xmlrpc.client", "zipfile"),
)
"""The modules whose docstrings are read, in this order."""

_WORDS = range(5, 41)
_EVERY = 4
"""One sentence in so many is for calibration, the others are for testing."""

_CODE = re.compile(r"^\w+\(|->|>>>|---|\.\.\s|::$")
"""Signs of a signature, a prompt, a table or an example."""

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph of a docstring, in one line.

    >>> first_sentence("Return the sum,\\n    as a float.  Not rounded.\\n\\n    More.")
    'Return the sum, as a float.'
    """
    paragraph = re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0]
    return _END.split(" ".join(paragraph.split()), maxsplit=1)[0]


def docstring_sentences(modules: Iterable[str] = MODULES) -> tuple[list[str], list[str]]:
    """Sentences for calibration and for testing, none of them twice.

    Sentences of 5 to 40 words are taken; every fourth is for calibration.

    Args:
        modules: names of modules that have a source file; one that this Python lacks is left out.

    Returns:
        The sentences for calibration, and those for testing, each in the order of the modules.

    Raises:
        DatasetError: none of the modules has a docstring.

    >>> calibration, test = docstring_sentences(["queue"])
    >>> calibration[0]
    'Create a queue object with a given maximum size.'
    """
    found = dict.fromkeys(sentence for name in modules for sentence in _sentences_of(name))
    if not found:
        raise DatasetError(
            "sentences: none of the modules has a docstring of 5 to 40 words; name modules of the "
            "standard library that are written in Python, and run Python with its sources"
        )
    sentences = list(found)
    test = [s for i, s in enumerate(sentences) if i % _EVERY]
    return sentences[::_EVERY], test


def _sentences_of(name: str) -> Iterator[str]:
    source = _source_of(name)
    if source is None:
        return
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    for node in sorted(documented, key=lambda node: getattr(node, "lineno", 0)):
        sentence = first_sentence(ast.get_docstring(node) or "")
        if len(sentence.split()) in _WORDS and not _CODE.search(sentence):
            yield sentence


def _source_of(name: str) -> str | None:
    """Source of a module, which is found without running it; its parent packages are imported."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).read_text(encoding="utf-8")
