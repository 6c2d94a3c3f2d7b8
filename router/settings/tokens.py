"""The model of the settings about tokens: ``[tokens]``."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from router.core.policies import Foreign, TokenPolicy
from router.settings.table import Table, about

KEY_LENGTH = 16
"""How many characters a key that signs tokens needs at least."""


def _long_enough(key: SecretStr) -> SecretStr:
    if len(key) < KEY_LENGTH:
        raise ValueError(f"must have at least {KEY_LENGTH} characters")
    return key


class TokenSettings(Table):
    """How the tokens of sessions are made and read."""

    key: Annotated[SecretStr, AfterValidator(_long_enough)] | None = Field(
        default=None, description=about(TokenPolicy).get("key")
    )
    foreign: Foreign = Field(default="ignore", description=about(TokenPolicy).get("foreign"))

    def policy(self) -> TokenPolicy:
        """Make the policy that the topology holds."""
        return TokenPolicy(None if self.key is None else self.key.get_secret_value().encode(), self.foreign)
