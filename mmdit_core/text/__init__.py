"""Text encoders' outputs joined, and the positions of words in them."""
