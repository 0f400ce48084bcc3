"""Densifiers: strategies that add Gaussians."""
