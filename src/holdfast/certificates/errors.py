"""Why a proof is not accepted."""

from holdfast.errors import CertificateError

__all__ = ["CertificateError"]
