"""Neural Gaussians: anchors with features, and a decoder that makes Gaussians of them."""
