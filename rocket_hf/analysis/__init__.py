"""Why alignment works, measured: gradients, similarities, depth."""
