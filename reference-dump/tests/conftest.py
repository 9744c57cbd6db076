"""Pins the arithmetic before any test module computes: the golden cases are compared to the bit."""

from touchstone_reference import reproducible  # noqa: F401  (its import is what pins)
