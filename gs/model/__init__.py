"""The model: parameters, rows, rendering and files of Gaussians."""
