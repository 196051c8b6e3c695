"""The page of a run that trained a policy."""
