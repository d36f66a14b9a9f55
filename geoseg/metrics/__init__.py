"""Scores of label maps and of pictures, and what may be said about them."""
