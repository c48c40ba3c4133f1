"""What is said where the charting libraries are missing."""

from __future__ import annotations

import pytest
from hf_sparsify.charts import extra
from hf_sparsify.errors import SparsifyError


def test_charts_are_installed() -> None:
    assert extra.charts_installed()
    extra.require_charts("a report")


def test_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "_LIBRARIES", ("altair", "no_such_library"))
    assert not extra.charts_installed()
    with pytest.raises(SparsifyError, match=r"^a report needs .* pip install 'hf-sparsify\[plot\]'$"):
        extra.require_charts("a report")
