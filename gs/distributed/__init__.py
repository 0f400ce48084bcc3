"""One model on several ranks: its Gaussians sharded by id, its images cut into tasks."""
