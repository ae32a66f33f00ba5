"""What can be learned from a finished run without training again."""
