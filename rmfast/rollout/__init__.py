"""Sampling from a language model: rollouts of policies, and what they are kept as."""
