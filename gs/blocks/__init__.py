"""Scenes in blocks: partition, schedule, state and merging."""
