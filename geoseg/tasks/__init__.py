"""What is learnt, and how everything is scored."""
