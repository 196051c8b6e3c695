"""The page and the console tables of suite results."""
