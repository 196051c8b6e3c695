"""Suites: what a benchmark asks, how answers are judged, and one file for each benchmark that rmfast knows."""
