"""Choosing among N responses by reward models: what is kept, and proxy reward against gold over N."""
