"""PPO: from sampled answers and their scores to rewards, advantages and updates."""
