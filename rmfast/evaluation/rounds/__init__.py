"""Policies of several rounds side by side: rewards, win rates, drift, diversity, and what that says of the paper's
findings. Pure numpy."""
