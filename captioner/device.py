"""Choose the device to compute on."""

from __future__ import annotations

import torch

from captioner.errors import ConfigError


def choose_device(name: torch.device | str) -> torch.device:
    """Return the device of a name; "auto" is a GPU if there is one.

    Raises ConfigError for a device that cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the device meta holds no numbers
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
        raise ConfigError(
            f"device {str(name)!r} cannot be used: {reason.rstrip('.')}; take cpu or auto"
        ) from None
    return device
