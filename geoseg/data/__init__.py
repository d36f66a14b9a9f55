"""Pictures and their targets: where they come from, who is in which split, and in which order."""
