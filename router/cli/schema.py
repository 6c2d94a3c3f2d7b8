"""``router schema``."""

from __future__ import annotations

from router import RouterSettings
from router.cli._common import print_json


def schema() -> None:
    """Print the JSON schema of the settings file, for editors.

    \b
    router schema > router.schema.json      # the starter file of `router init` names it in its first line
    """  # noqa: D301  (\b keeps the lines as they are)
    print_json(RouterSettings.model_json_schema())
