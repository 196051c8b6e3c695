"""From files of preferences to tokenised prompt groups, and from those to packs.

sources (rows of any file) -> rows (examples) -> tokenise (token ids) -> store (arrays on disk) -> plan, pack, loader.
"""
