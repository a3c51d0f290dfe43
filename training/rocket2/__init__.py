"""ROCKET-2 in training: episodes of a simulated world to chunks with goals in other views, and what is made of them."""
