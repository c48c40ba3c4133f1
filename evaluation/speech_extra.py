"""Whether the libraries that speech needs are installed."""

from __future__ import annotations

from importlib.util import find_spec

from ..errors import SparsifyError

_LIBRARIES = ("jiwer", "soundfile")


def require_speech() -> None:
    """SparsifyError that says what to install, if sound cannot be read or words cannot be compared."""
    if missing := [library for library in _LIBRARIES if find_spec(library) is None]:
        raise SparsifyError(f"speech needs {' and '.join(missing)}: pip install 'hf-sparsify[speech]'")
