"""What stands between a trained policy and a repository on the Hub: its self-test, the checks, the one commit."""
