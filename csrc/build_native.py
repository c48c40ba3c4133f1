"""Builds the native kernels: the same source once per instruction set, named in pyproject.toml, each of them optional.

They are built side by side, as many as there are cores. Where a build fails, the package installs without it and says
why in `sparsify env`; SPARSIFY_REQUIRE_NATIVE=1 makes the failure an error.
"""

from __future__ import annotations

import copy
import os
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

REQUIRE = "SPARSIFY_REQUIRE_NATIVE"
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-Wno-unknown-pragmas"]
INSTRUCTIONS = {
    "_avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
    "_avx2": ["-mavx2", "-mfma"],
    "_portable": [],
}
NOTE = "build-note.txt"


class BuildNative(build_ext):
    """Adds the flags of each build, and goes on without what cannot be built."""

    def run(self) -> None:
        self._failures: list[str] = []
        self._required = os.environ.get(REQUIRE) == "1"
        for extension in self.extensions:
            extension.optional = not self._required
        super().run()
        self._write_note()

    def build_extensions(self) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.build_extension, self.extensions))

    def build_extension(self, ext: Extension) -> None:
        name = ext.name.rpartition(".")[2]
        if INSTRUCTIONS[name] and platform.machine().lower() not in ("x86_64", "amd64"):
            return
        # Apple's compiler has no OpenMP; one thread there.
        openmp = ["-fopenmp"] if sys.platform.startswith("linux") else []
        ext.extra_compile_args = [*FLAGS, *INSTRUCTIONS[name], *openmp]
        ext.extra_link_args = openmp
        ext.define_macros = [("MODULE_NAME", name)]
        # Each build has objects of its own.
        build = copy.copy(self)
        build.build_temp = os.path.join(self.build_temp, name)
        try:
            super(BuildNative, build).build_extension(ext)
        except Exception as error:
            if self._required:
                raise
            self._failures.append(f"{name}: {error}")

    def _write_note(self) -> None:
        """The reasons of failed builds beside where the builds go; an older note is gone."""
        note = Path(self.get_ext_fullpath("hf_sparsify.patcher.kernels._portable")).with_name(NOTE)
        note.unlink(missing_ok=True)
        if self._failures:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text("\n".join(sorted(self._failures)) + "\n", encoding="utf-8")
