"""What each command of `rmfast` does, in a file of its name."""
