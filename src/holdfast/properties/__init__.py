"""Properties of networks: read VNN-LIB, judge and write counterexamples."""

from holdfast.certificates.exact import holds
from holdfast.properties.counterexample import format_counterexample, parse_counterexample
from holdfast.properties.errors import PropertyError
from holdfast.properties.record import Query
from holdfast.properties.vnnlib import parse_vnnlib, read_vnnlib

__all__ = [
    "PropertyError",
    "Query",
    "format_counterexample",
    "holds",
    "parse_counterexample",
    "parse_vnnlib",
    "read_vnnlib",
]
