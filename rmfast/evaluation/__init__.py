"""Held-out measures: scores of models, suites, judges, metrics, diagnostics."""
