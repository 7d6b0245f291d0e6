"""The way in which users authenticate, derived from the settings."""

from __future__ import annotations

from enum import Enum


class AccessMode(Enum):
    """The ways in which users authenticate; passwords can be added to any of them."""

    REMOTE_KEYS = "remote keys"
    """The user's own authorized_keys on the remote."""

    LOCAL_KEYS = "local keys"
    """The operator's list of keys; the gateway logs in on the remote with its own key."""

    ANY_KEY = "any key"
    """GATEWAY_ACCEPT_ANY_KEY; the gateway logs in on the remote with its own key."""

    AGENT = "agent pass-through"
    """The user's forwarded agent logs in on the remote: the gateway has no key, and its sshd accepts any key."""

    AGENT_AND_LOCAL_KEYS = "agent pass-through, local keys"
    """The same, but the gateway's sshd accepts only keys on the operator's list."""

    @classmethod
    def of(cls, *, has_key: bool, has_local_keys: bool, accepts_any_key: bool) -> AccessMode:
        """Derive the mode from the settings.

        Args:
            has_key: Whether the gateway has a private key of its own (GATEWAY_SSH_KEY_PATH or _CONTENT).
            has_local_keys: Whether the operator lists keys (GATEWAY_AUTHORIZED_KEYS_PATH or _CONTENT).
            accepts_any_key: GATEWAY_ACCEPT_ANY_KEY.
        """
        if not has_key:
            return cls.AGENT_AND_LOCAL_KEYS if has_local_keys else cls.AGENT
        if has_local_keys:
            return cls.LOCAL_KEYS
        return cls.ANY_KEY if accepts_any_key else cls.REMOTE_KEYS

    @property
    def passes_agent_through(self) -> bool:
        """Whether users log in on the remote with their own agent."""
        return self in {AccessMode.AGENT, AccessMode.AGENT_AND_LOCAL_KEYS}

    @property
    def any_key_passes(self) -> bool:
        """Whether sshd accepts any key, so that only the remote authenticates users, or nothing does."""
        return self in {AccessMode.AGENT, AccessMode.ANY_KEY}
