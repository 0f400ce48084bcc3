"""From photographs or a video to a scene: pictures, COLMAP's steps, and their order."""
