"""Which layers of a policy to align with which layers of a teacher, without training anything."""
