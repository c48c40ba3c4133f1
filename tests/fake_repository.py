"""A repository of the fake Hub: commits, branches and files."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

Files = dict[str, bytes]


@dataclass
class Repository:
    """commits: hash -> files. branches: name -> hash. sizes: of files that are said to be larger than they are."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def files(self) -> Files:
        """What is on main."""
        return self.commits[self.branches["main"]]

    def commit(self, files: Files, branch: str = "main") -> str:
        """Adds files to a branch; returns the hash of the commit."""
        together = {**self.commits[self.branches.get(branch, self.branches["main"])], **files}
        digest = hashlib.sha1(f"{len(self.commits)} {sorted(together)}".encode()).hexdigest()
        self.commits[digest] = together
        self.branches[branch] = digest
        return digest

    def size(self, name: str, content: bytes) -> int:
        return self.sizes.get(name, len(content))
