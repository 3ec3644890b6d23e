"""Does a picture show what its prompt says? Colour, shape, count and relation, judged without a neural network."""
