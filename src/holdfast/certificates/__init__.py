"""Proofs that can be checked: files, and a checker that shares nothing with the verifier."""

from holdfast.certificates.check import CheckResult, check
from holdfast.certificates.errors import CertificateError
from holdfast.certificates.proof import Proof, Tree, load_proof, save_proof

__all__ = ["CertificateError", "CheckResult", "Proof", "Tree", "check", "load_proof", "save_proof"]
