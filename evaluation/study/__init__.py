"""Studies: which block serves which attribute, measured on a prompt set, and what follows from it, proven."""
