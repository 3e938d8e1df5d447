"""A repository of the local Hub: files in memory, its commits, and what the API says of them."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

LARGE = 1000  # bytes from which a file is a large one (LFS)


@functools.cache
def _digest(data: bytes) -> tuple[str, str]:
    """As git names a small file, and as the Hub names a large one."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest(), hashlib.sha256(data).hexdigest()


@dataclass
class Repo:
    id: str
    kind: str  # "model" | "dataset"
    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    facts: dict[str, Any] = field(default_factory=dict)  # downloads, likes, tags, ... as the API shows them
    past: dict[str, dict[str, bytes]] = field(default_factory=dict)  # files of earlier commits

    @property
    def commit(self) -> str:
        whole = hashlib.sha1()
        for path, data in sorted(self.files.items()):
            whole.update(path.encode() + _digest(data)[0].encode())
        return whole.hexdigest()

    def change(self, **files: bytes) -> None:
        """A new commit; a double underscore in a name stands for a dot."""
        self.past[self.commit] = dict(self.files)
        self.files |= {name.replace("__", "."): data for name, data in files.items()}

    def at(self, commit: str | None) -> Repo:
        return replace(self, files=self.past[commit], past={}) if commit in self.past else self

    def entry(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        sha1, sha256 = _digest(data)
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": sha1}
        if len(data) >= LARGE:
            entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
        return entry

    def etag(self, path: str) -> str:
        entry = self.entry(path)
        return entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]

    def info(self, blobs: bool) -> dict[str, Any]:
        siblings = []
        for path in sorted(self.files):
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                entry = self.entry(path)
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if "lfs" in entry:
                    sibling["lfs"] = {"sha256": entry["lfs"]["oid"], "size": entry["size"], "pointerSize": 130}
            siblings.append(sibling)
        return {
            "_id": "0", "id": self.id, "sha": self.commit, "private": self.private, "disabled": False,
            "gated": "manual" if self.gated else False, "downloads": 0, "likes": 0, "tags": [],
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
            "siblings": siblings, **self.facts,
        }  # fmt: skip
