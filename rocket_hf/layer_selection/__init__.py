"""Selection of the layer pairs to align, without training (`rocket-hf layers`)."""
