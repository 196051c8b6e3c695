"""The page and plots of an ensemble: preference strengths, its members, the ways to combine them."""
