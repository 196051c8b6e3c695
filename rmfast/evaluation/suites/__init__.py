"""Suites: what a benchmark asks, how answers are judged, and one file for each of rmfast's own benchmarks."""
