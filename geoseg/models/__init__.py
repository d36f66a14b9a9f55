"""Networks that a method is made of."""
