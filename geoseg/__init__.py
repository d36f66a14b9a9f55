"""Which way of segmenting geological profiles works, with few labels, and how sure one can be of it."""
