"""How the small model was trained: data, text encoders, VAE, transformer, export."""
