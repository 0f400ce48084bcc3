"""Files of Gaussians beside the plain .ply: smaller ones to send, and those of other programs."""
