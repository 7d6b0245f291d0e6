"""One user's authorized_keys, wherever they are from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class KeyFile:
    """A user's authorized_keys.

    Attributes:
        content: The file; empty where there is none.
        source: ``remote``, ``path``, ``content`` or ``any``.
        fetch_ms: Milliseconds that this asker's answer took to fetch; 0 when it was remembered.
        believed_until_s: Until when it is believed, on the source's clock; 0 where it is read anew for each key.
        problems: Why some of it, or all, does not count; one sentence each.
    """

    content: bytes
    source: str
    fetch_ms: float = 0.0
    believed_until_s: float = field(default=0.0, compare=False)
    problems: tuple[str, ...] = field(default=(), compare=False)

    @property
    def why_no_line(self) -> str:
        """Say in the log why no line of it permits a key."""
        return "; ".join(self.problems) or "no line for this key"
