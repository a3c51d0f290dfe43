"""Training of ROCKET-2 policies on recorded episodes, whose goals are object masks in other views of the same room."""
