"""rmfast: fast, exact training of reward models from preference data."""
