"""What every method becomes once it is trained."""
