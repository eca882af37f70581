"""A small procedural world: captioned clips of simple objects, ray-cast in torch, used to train the video model."""
