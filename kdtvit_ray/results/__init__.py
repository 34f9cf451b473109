"""Measured values of a study, their tables and statistics: no torch, no Ray, no Optuna."""
