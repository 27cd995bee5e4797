"""The main job: analyze, plan, apply, compress; checkpoints and the store."""
