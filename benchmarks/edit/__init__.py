"""Edits of five kinds by five methods: how often the new image is right, and how much of the old one stays."""
