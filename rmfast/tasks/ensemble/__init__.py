"""task: ensemble. Members, what each sees and scores, and the strength of each preference (Part II, section 2.1)."""
