"""The page and plots of an iteration: policies round by round."""
