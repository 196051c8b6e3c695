"""task: iterate. Rounds of samples, MetaRM and PPO (Part II, section 3.2), each stage a run in its sub-folder."""
