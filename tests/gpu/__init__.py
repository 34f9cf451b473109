"""Checks and figures for a machine with an NVIDIA GPU: `make gpu`, or `python -m tests.gpu`."""
