"""Data of the loopback Hub, in memory: repositories with commits, tags and branches, and large files by hash."""

import hashlib
import threading
from dataclasses import dataclass, field

LARGE = 10_000  # minimum size of files that are stored outside of git, in bytes; all safetensors are


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class File:
    data: bytes
    large: bool  # stored by its SHA-256, outside of git

    @property
    def pointer(self) -> bytes:
        return f"version lfs\noid sha256:{sha256(self.data)}\nsize {len(self.data)}\n".encode()

    @property
    def blob(self) -> str:
        """Git hash of the file, or of its LFS pointer."""
        content = self.pointer if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return sha256(self.data) if self.large else self.blob

    def describe(self, path: str) -> dict:
        entry = {"type": "file", "oid": self.blob, "size": len(self.data), "path": path}
        if self.large:
            pointer = {"oid": sha256(self.data), "size": len(self.data), "pointerSize": len(self.pointer)}
            entry["lfs"] = pointer  # type: ignore[assignment]
        return entry


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    files: dict[str, File]
    parent: str | None


@dataclass
class Repository:
    id: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, title: str, files: dict[str, File], branch: str = "main") -> Commit:
        parent = self.branches.get(branch)
        content = repr((parent, title, sorted((path, file.blob) for path, file in files.items()), len(self.commits)))
        oid = hashlib.sha1(content.encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, dict(files), parent)
        self.branches[branch] = oid
        return self.commits[oid]

    def find(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(oid)

    def history(self, oid: str | None) -> list[Commit]:
        commits = []
        while oid is not None:
            commits.append(self.commits[oid])
            oid = self.commits[oid].parent
        return commits

    @property
    def head(self) -> Commit:
        return self.commits[self.branches["main"]]


@dataclass
class Store:
    """Repositories by ("models" or "datasets", id), and users by their tokens."""

    tokens: dict[str, str] = field(default_factory=lambda: {"token-of-ada": "ada", "token-of-bob": "bob"})
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def create(self, kind: str, name: str, private: bool = False) -> Repository:
        repository = Repository(name, private)
        repository.commit("initial commit", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)})
        self.repositories[kind, name] = repository
        return repository
