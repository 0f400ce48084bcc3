"""Image quality: losses, metrics and rendered views."""
