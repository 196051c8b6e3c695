"""Scores of responses: reward models of any architecture, tables of packs, rows of a file."""
