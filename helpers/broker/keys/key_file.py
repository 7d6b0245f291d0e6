"""One user's authorized_keys, from any source."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class KeyFile:
    """A user's authorized_keys.

    Attributes:
        content: The file; empty if there is none.
        source: ``remote``, ``path``, ``content`` or ``any``.
        fetch_ms: Milliseconds that the fetch for this request took; 0 if the file was cached.
        valid_until_s: When it expires, on the source's clock; 0 if it is read again for each key.
        problems: Why parts of it, or all, are ignored; one sentence each.
    """

    content: bytes
    source: str
    fetch_ms: float = 0.0
    valid_until_s: float = field(default=0.0, compare=False)
    problems: tuple[str, ...] = field(default=(), compare=False)

    @property
    def why_no_line(self) -> str:
        """The reason, for the log, why no line of it permits a key."""
        return "; ".join(self.problems) or "no line for this key"
