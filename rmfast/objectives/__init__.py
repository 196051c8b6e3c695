"""Objectives: pure functions of scores, log-probabilities and preference edges."""
