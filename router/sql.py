"""Every SQL text that the router itself sends."""

from __future__ import annotations

IS_IN_RECOVERY = "SELECT pg_is_in_recovery()"
