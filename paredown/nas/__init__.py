"""Architecture search: spaces as data, strategies that ask and tell, evaluators that a process can run."""
