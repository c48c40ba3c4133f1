"""Whether the libraries that charts need are installed."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import SparsifyError

_LIBRARIES = ("altair", "vl_convert", "jinja2")


def charts_installed() -> bool:
    """Whether charts can be drawn."""
    return all(find_spec(library) is not None for library in _LIBRARIES)


def require_charts(what: str) -> None:
    """SparsifyError that says what to install, if charts cannot be drawn. what: "a report", for the sentence."""
    if not charts_installed():
        raise SparsifyError(f"{what} needs the charting libraries: pip install 'hf-sparsify[plot]'")
