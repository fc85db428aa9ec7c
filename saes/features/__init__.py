"""Feature sets: what latents fire on, collected in one pass, and their files."""
