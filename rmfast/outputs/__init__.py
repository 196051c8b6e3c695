"""What rmfast may write, and what it must not touch: one rule for every command and every run."""
