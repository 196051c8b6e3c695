"""From a config to the parts of a run: the only readers of the config beside the tasks."""
