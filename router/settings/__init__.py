"""What the user writes: typed settings from arguments, ``ROUTER_*`` variables, secrets and a file, as a topology."""

from router.settings.models import RouterSettings
from router.settings.tenants import TENANT_KEYS, TenantSettings

__all__ = ["TENANT_KEYS", "RouterSettings", "TenantSettings"]
