"""Why a proof is not accepted."""

from __future__ import annotations


class CertificateError(ValueError):
    """A proof file, its network or its property cannot be used for checking."""
