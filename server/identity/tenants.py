"""Whether callers must name a tenant."""


class TenantRequirement:
    """Says whether a caller without a tenant is refused; without a fixed answer, once there are tenants.

    Then the tenant `''`, in which such a caller would be, belongs to nobody, and most likely a proxy forgot to say
    which tenant it meant.

    Args:
        required: The fixed answer; None to find out.
    """

    def __init__(self, required: bool | None = None) -> None:  # noqa: FBT001
        self.required = bool(required)
        self.is_fixed = required is not None

    def note_tenant(self) -> None:
        """Notes that there is a tenant."""
        if not self.is_fixed:
            self.required = True
