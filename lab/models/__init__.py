"""Models: `HookedModel`, its sites, and how one is loaded."""
